"""`make bench`: what resumability costs, each workload against a plain `StreamingResponse` in the same run.

The targets of a workload take turns; what is shown is the median of the rounds. It is the server's CPU time, rather
than the time on the clock, because that is what a busy machine changes least.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.redis_server import RedisServer
from tests.support.server import Server

from .apps import MIB
from .servers import Load, load, serve

Numbers = dict[str, float]
Redis = "resumable-redis"
SENT = ("eval", "evalsha", "fcall", "xread", "spublish", "publish")
"""Redis commands that the store sends again and again. What a script calls, Redis counts beside the script."""


@dataclass(frozen=True)
class Column:
    """A number of a workload's rows."""

    key: str
    title: str
    format: str = ",.2f"
    ratio: bool = False
    """Whether to compare it with the workload's first target."""


@dataclass(frozen=True)
class Workload:
    """What is put on which targets, the first of them being what the others are compared with."""

    name: str
    what: str
    targets: tuple[str, ...]
    do: str
    options: dict[str, Any]
    columns: tuple[Column, ...]
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of one target."""
    small: dict[str, Any] = field(default_factory=dict)
    """Options of a smoke run."""
    rounds: int = 5
    fresh: bool = False
    """Whether each run has a server of its own: it is about memory."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the applications, where each run has a server of its own."""


US = Column("us_per_event", "CPU µs/event", ratio=True)
RATE = Column("events_s", "events/s", ",.0f", ratio=True)
STREAMED = ("plain", "sse-starlette", "resumable", "resumable-ids")

WORKLOADS = (
    Workload(
        "W1 C=1",
        "one stream after another, awaits once per event",
        STREAMED,
        "streams",
        {"c": 1, "n": 4000, "rounds": 5},
        (US, RATE),
        small={"n": 200, "rounds": 1},
    ),
    Workload(
        "W1 C=64",
        "64 streams at once, awaits once per event",
        STREAMED,
        "streams",
        {"c": 64, "n": 1500},
        (US, RATE, Column("ttfb_p99_ms", "first byte p99 ms", ",.1f")),
        small={"c": 4, "n": 100},
        rounds=3,
    ),
    Workload(
        "W1n C=64",
        "64 streams at once, a generator that never awaits",
        STREAMED,
        "streams",
        {"c": 64, "n": 3000, "awaits": False, "probe": True},
        (US, RATE, Column("probe_p95_ms", "other requests, p95 ms", ",.1f")),
        small={"c": 4, "n": 100},
        rounds=3,
    ),
    Workload(
        "W2",
        "200 streams of 50 events/s",
        ("plain", "resumable", "resumable-ids"),
        "paced",
        {"c": 200, "rate": 50, "seconds": 1},
        (US, Column("cpu_pct", "CPU %", ",.0f"), Column("lat_p99_ms", "latency p99 ms", ",.1f")),
        small={"c": 4, "seconds": 0.2, "settle": 0.1},
        rounds=3,
    ),
    Workload(
        "W3",
        "64 replays of a finished stream of 4 MiB at once; plain: blocks of 64 KiB",
        ("plain", "resumable"),
        "replays",
        {"c": 64, "rounds": 3},
        (
            Column("mb_per_cpu_s", "MB per CPU s", ",.0f", ratio=True),
            Column("ttfb_p99_ms", "first byte p99 ms", ",.1f"),
        ),
        overrides={"plain": {"path": "/blocks"}},
        small={"c": 2, "rounds": 1},
        rounds=3,
    ),
    Workload(
        "W4",
        "one stream of 200 events/s to 300 readers; plain: 300 streams",
        ("plain", "resumable", "resumable-ids"),
        "fan_out",
        {"c": 300, "rate": 200, "seconds": 1},
        (
            Column("us_per_event", "CPU µs/delivery", ratio=True),
            Column("delivered_pct", "delivered %", ",.1f"),
            Column("lat_p99_ms", "latency p99 ms", ",.1f"),
        ),
        overrides={"plain": {"shared": False}},
        small={"c": 4, "seconds": 0.2, "settle": 0.1},
        rounds=3,
    ),
    Workload(
        "W5",
        "3,000 finished streams of 4 KiB in 32 events; lookup of 100 ids",
        ("resumable", "resumable-ids"),
        "sessions",
        {"count": 3000},
        (
            Column("kib_per_session", "KiB each"),
            Column("us_per_session", "CPU µs to make", ",.0f"),
            Column("lookup_ms", "lookup ms", ",.3f"),
        ),
        small={"count": 50, "lookups": 5},
        rounds=1,
        fresh=True,
    ),
    Workload(
        "W6",
        "300 readers of one stream drop and resume, all at once",
        ("resumable", "resumable-ids"),
        "storm",
        {"c": 300},
        (
            Column("catchup_p50_ms", "back after p50 ms", ",.0f"),
            Column("catchup_max_ms", "max ms", ",.0f"),
            Column("cpu_us_per_reader", "CPU µs/reader", ",.0f"),
            Column("faults", "order faults", ",.0f"),
        ),
        small={"c": 4},
        rounds=3,
    ),
    Workload(
        "slow",
        "64 readers of 4 streams, alone and beside 64 that take 1 KiB/s; then 8 MiB each, through logs of 1 MiB",
        ("resumable-ids",),
        "slow",
        {"bound": MIB},
        (
            Column("alone_p50_ms", "alone: latency p50 ms"),
            Column("alone_p99_ms", "p99 ms"),
            Column("beside_p50_ms", "beside slow ones: p50 ms"),
            Column("beside_p99_ms", "p99 ms"),
            Column("behind_kib", "slow ones behind, KiB", ",.0f"),
            Column("lost", "lost by fast ones, bytes", ",.0f"),
            Column("growth_mib", "memory grows by MiB", ",.1f"),
            Column("bound_mib", "bound MiB", ",.1f"),
        ),
        small={"c": 4, "slow": 4, "streams": 2, "seconds": 0.2, "settle": 0.1},
        rounds=1,
        fresh=True,
        settings={"max_stream_bytes": MIB},
    ),
    Workload(
        "idle",
        "1,000 live streams, one reader each, silent but for a ping every 1.5 s: as many as of 10,000 at 15 s; "
        "raw: nothing but sockets",
        ("plain", "sse-starlette", "resumable-ids", "raw"),
        "idle",
        {"c": 1000, "seconds": 3},
        (Column("cpu_pct", "CPU %", ratio=True), Column("kib_per_stream", "KiB each", ",.1f")),
        small={"c": 10, "seconds": 0.2},
        rounds=1,
        fresh=True,
        settings={"ping": 1.5},
    ),
    Workload(
        "native",
        "FastAPI's own `yield` event stream, without the library and with it; C=16",
        ("native", "resumable-native"),
        "streams",
        {"c": 16, "n": 500},
        (US, RATE),
        small={"c": 2, "n": 50},
    ),
    Workload(
        "redis W1",
        "as W1 C=64, in Redis",
        ("resumable-ids", Redis),
        "streams",
        {"c": 64, "n": 1500},
        (
            US,
            RATE,
            Column("scripts", "calls of Redis/event", ",.3f"),
            Column("commands", "with what the scripts call", ",.2f"),
        ),
        small={"c": 4, "n": 100},
    ),
    Workload(
        "redis W4",
        "as W4, in Redis",
        ("resumable-ids", Redis),
        "fan_out",
        {"c": 300, "rate": 200, "seconds": 1},
        (
            Column("us_per_event", "CPU µs/delivery", ratio=True),
            Column("delivered_pct", "delivered %", ",.1f"),
            Column("lat_p99_ms", "latency p99 ms", ",.1f"),
        ),
        small={"c": 4, "seconds": 0.2, "settle": 0.1},
        rounds=3,
    ),
)


class Bench:
    """Servers that are started when first needed, and runs on them."""

    def __init__(self, stack: ExitStack, generator: Load) -> None:
        self._stack = stack
        self._load = generator
        self._servers: dict[str, Server] = {}
        self._redis: RedisServer | None = None

    def redis(self) -> RedisServer:
        """The Redis of this run."""
        if self._redis is None:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            self._redis = RedisServer(folder)
            self._stack.callback(self._redis.kill)
        return self._redis

    def _settings(self, target: str) -> tuple[str, dict[str, Any]]:
        return ("resumable-ids", {"store": self.redis().url}) if target == Redis else (target, {})

    def _server(self, target: str) -> Server:
        if target not in self._servers:
            kind, settings = self._settings(target)
            self._servers[target] = self._stack.enter_context(serve(kind, **settings))
        return self._servers[target]

    def run(self, work: Workload, target: str, *, small: bool) -> Numbers:
        """One run of a workload on a target."""
        options = work.options | work.overrides.get(target, {}) | (work.small if small else {})
        if work.fresh:
            kind, settings = self._settings(target)
            with serve(kind, **settings | work.settings) as server:
                return self._load.put(server, work.do, **options)
        server = self._server(target)
        before = self._commands() if target == Redis else {}
        numbers = self._load.put(server, work.do, **options)
        if target == Redis:
            calls = {name: count - before.get(name, 0) for name, count in self._commands().items()}
            numbers["commands"] = sum(calls.values()) / numbers["events"]
            numbers["scripts"] = sum(calls.get(name, 0) for name in SENT) / numbers["events"]
        return numbers

    def _commands(self) -> dict[str, int]:
        assert self._redis is not None
        return {name.removeprefix("cmdstat_"): stats["calls"] for name, stats in self._redis.commandstats().items()}

    def warm_up(self, work: Workload, target: str) -> None:
        """Start what is needed; the first requests of a process are slow."""
        if not work.fresh:
            self.run(work, target, small=True)


def measure(
    works: Iterable[Workload], rounds: int | None, *, small: bool, tell: Callable[[str], None]
) -> list[Numbers]:
    """All runs, as rows: workload, target, round, and the numbers."""
    rows: list[Any] = []
    with ExitStack() as stack:
        bench = Bench(stack, stack.enter_context(load()))
        for work in works:
            begun = time.monotonic()
            targets = list(work.targets)
            for target in targets if not small else ():
                bench.warm_up(work, target)
            for number in range(rounds or work.rounds):
                for target in targets if number % 2 == 0 else reversed(targets):
                    numbers = bench.run(work, target, small=small)
                    rows.append({"workload": work.name, "target": target, "round": number, **numbers})
            tell(f"{work.name}: {time.monotonic() - begun:.0f} s")
    return rows


def medians(rows: list[Any], work: Workload) -> dict[str, Numbers]:
    """By target, the median of every number."""
    result: dict[str, Numbers] = {}
    for target in work.targets:
        runs = [row for row in rows if row["workload"] == work.name and row["target"] == target]
        if runs:
            result[target] = {
                column.key: statistics.median(run[column.key] for run in runs)
                for column in work.columns
                if column.key in runs[0]
            }
    return result


def table(rows: list[Any]) -> str:
    """The results in Markdown, one table for each workload."""
    parts = []
    for work in WORKLOADS:
        by_target = medians(rows, work)
        if not by_target:
            continue
        base = next(iter(by_target))
        lines = [f"**{work.name}**: {work.what}", ""]
        lines.append(f"| | {' | '.join(column.title + f' (x {base})' * column.ratio for column in work.columns)} |")
        lines.append("|---" + "|---:" * len(work.columns) + "|")
        for target, numbers in by_target.items():
            cells = []
            for column in work.columns:
                cell = format(numbers[column.key], column.format) if column.key in numbers else ""
                if cell and column.ratio:
                    cell += f" ({numbers[column.key] / by_target[base][column.key]:.2f})"
                cells.append(cell)
            lines.append(f"| {target} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="What resumability costs.")
    parser.add_argument("names", nargs="*", help="parts of the names of workloads; none: all")
    parser.add_argument("--rounds", type=int, help="how many runs of each, instead of what each workload has")
    parser.add_argument("--small", action="store_true", help="tiny sizes: whether it works, not how fast")
    parser.add_argument("--json", type=Path, help="also write the runs to a file")
    args = parser.parse_args()
    works = [work for work in WORKLOADS if not args.names or any(name in work.name for name in args.names)]
    if shutil.which("redis-server") is None:
        print("There is no redis-server: the workloads on Redis are left out.", file=sys.stderr)
        works = [work for work in works if Redis not in work.targets]
    begun = time.monotonic()
    rows = measure(works, args.rounds, small=args.small, tell=lambda text: print(text, file=sys.stderr, flush=True))
    print(table(rows))
    print(f"\n{time.monotonic() - begun:.0f} s")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
