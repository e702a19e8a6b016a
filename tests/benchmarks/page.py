"""Puts the results into the page on performance, between its markers: `python -m tests.benchmarks.page`.

Each part of the page that is made here stands between `<!-- NAME: made by tests/benchmarks/page.py -->` and
`<!-- /NAME -->`; the rest is written by hand, and has no numbers of a run in it.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from .__main__ import WORKLOADS, medians, table
from .growth import RESULTS
from .micro import show

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "performance.md"
USED = 0.6
"""How much of a core is planned for."""
OPEN_FILES = 10_000
"""How many connections are planned for in one worker, whatever its CPU could do."""


def _machine(growth: Any) -> str:
    machine = growth["machine"]
    return (
        f"{machine['cpu']}, {machine['system']}, Python {machine['python']}; {machine['packages']}. "
        "The server has one core, the load generator another."
    )


def _costs(bench: list[Any], growth: Any) -> dict[str, float]:
    """What a worker is planned with."""
    paced = medians(bench, next(work for work in WORKLOADS if work.name == "W2"))["resumable-ids"]
    fan_out = medians(bench, next(work for work in WORKLOADS if work.name == "W4"))["resumable-ids"]
    idle = growth["idle"]["resumable-ids"][-1]
    return {
        "event_us": paced["us_per_event"],
        "delivery_us": fan_out["us_per_event"],
        "kib": idle["kib_per_stream"],
        "start_ms": idle["start_ms"],
        "idle_pct": idle["cpu_pct"],
        "idle_streams": idle["x"],
    }


def _growth(growth: Any) -> str:
    streams, plain = growth["streams"]["resumable-ids"][-1], growth["streams"]["plain"][-1]
    readers, long = growth["readers"]["resumable-ids"][-1], growth["lengths"]["resumable-ids"][-1]
    return "\n".join(
        (
            f"- {streams['x']:,} streams of an event every two seconds take {streams['cpu_pct']:.0f} % of a core",
            f"  (plain: {plain['cpu_pct']:.0f} %), and {streams['rss_growth_kib'] / streams['x']:.1f} KiB each with",
            f"  their connection (plain: {plain['rss_growth_kib'] / plain['x']:.1f}).",
            f"- {readers['x']:,} readers of one stream of two events a second take {readers['cpu_pct']:.0f} % of a",
            f"  core, {readers['us_per_event']:.1f} µs for each delivery, and",
            f"  {readers['rss_growth_kib'] / readers['x']:.1f} KiB each.",
            f"- A stream of {long['x'] / 1024:g} GiB through a log of 4 MiB takes {long['cpu']:.1f} s of CPU and at",
            f"  its peak {long['peak_growth_kib'] / 1024:.0f} MiB of memory.",
        )
    )


def _idle(growth: Any) -> str:
    lines = [
        "| live, silent streams, one reader each | CPU % | KiB of stream, request and connection |",
        "|---|---:|---:|",
    ]
    for kind, points in growth["idle"].items():
        lines += [
            f"| {point['x']:,} ({kind}) | {point['cpu_pct']:.2f} | {point['kib_per_stream']:.1f} |" for point in points
        ]
    return "\n".join(lines)


def _workers(bench: list[Any], growth: Any) -> str:
    costs = _costs(bench, growth)
    lines = [
        f"Measured: {costs['event_us']:.1f} µs of CPU for an event that goes to one reader (W2),",
        f"{costs['delivery_us']:.1f} µs for each reader more (W4), {costs['start_ms']:.1f} ms to start a stream and",
        f"{costs['kib']:.0f} KiB to have one with its reader.",
        "",
        "| concurrent streams | at 5 events/s | at 20 events/s | at 50 events/s | memory, without the logs |",
        "|---:|---:|---:|---:|---:|",
    ]
    for streams in (1000, 100_000, 1_000_000):
        cells = []
        for rate in (5, 20, 50):
            # Each stream lives for half a minute, so that a thirtieth of them starts every second.
            busy = streams * (rate * costs["event_us"] / 1e6 + costs["start_ms"] / 1e3 / 30)
            workers = max(math.ceil(busy / USED), math.ceil(streams / OPEN_FILES))
            cells.append(f"{workers:,} worker{'s' * (workers > 1)}")
        memory = streams * costs["kib"] / 1024
        cells.append(f"{memory / 1024:,.1f} GiB" if memory >= 1024 else f"{memory:,.0f} MiB")
        lines.append(f"| {streams:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parts(results: Path = RESULTS) -> dict[str, str]:
    """What stands between the markers."""
    bench = json.loads((results / "bench.json").read_text())
    growth = json.loads((results / "growth.json").read_text())
    counted = json.loads((results / "instructions.json").read_text())
    return {
        "machine": _machine(growth),
        "table": table(bench),
        "instructions": "```text\n" + show(counted, "instructions each") + "\n```",
        "growth": _growth(growth),
        "idle": _idle(growth),
        "workers": _workers(bench, growth),
    }


def fill(page: str, texts: dict[str, str]) -> str:
    """The page with its parts made anew."""
    for name, text in texts.items():
        pattern = rf"(<!-- {name}: [^>]*-->\n)(?:.*?\n)?(<!-- /{name} -->)"
        between = f"\n{text}\n\n"
        page, count = re.subn(
            pattern, lambda match, between=between: f"{match[1]}{between}{match[2]}", page, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"the page has {count} places for {name!r}")
    return page


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(), parts()))
