"""How cost grows, with streams, readers, the size of events and the length of a stream; and what silence costs.

    python -m tests.benchmarks.growth [--small] [--json FILE]

Every point is a server of its own. On a quiet machine it takes about ten minutes; none of the runs more than two.
"""

import argparse
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .apps import MIB
from .servers import Load, load, serve

RESULTS = Path(__file__).parent / "results"
KINDS = ("plain", "resumable-ids")
OURS = ("resumable-ids",)

Point = dict[str, float]


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), platform.machine())
    packages = ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "sse-starlette", "redis")
    return {
        "cpu": f"{os.cpu_count()} x {model}",
        "system": f"Linux {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
    }


def _run(generator: Load, kind: str, do: str, settings: dict[str, Any] | None = None, **options: Any) -> Point:
    try:
        return _attempt(generator, kind, do, settings or {}, options)
    except RuntimeError as error:
        # A crowded machine may not get through in time; one failure is not to cost all that was measured.
        print(error, file=sys.stderr, flush=True)
        return _attempt(generator, kind, do, settings or {}, options)


def _attempt(generator: Load, kind: str, do: str, settings: dict[str, Any], options: dict[str, Any]) -> Point:
    with serve(kind, **settings) as server:
        return generator.put(server, do, **options)


def streams(generator: Load, small: bool) -> dict[str, list[Point]]:
    """Live streams of an event every two seconds, with one reader each."""
    counts = (1, 10) if small else (1, 10, 100, 1000, 3000, 10_000)
    timing = {"seconds": 0.5, "settle": 0.1, "rate": 20} if small else {"seconds": 4, "settle": 1, "rate": 0.5}
    return {
        kind: [{"x": count, **_run(generator, kind, "paced", c=count, **timing)} for count in counts] for kind in KINDS
    }


def readers(generator: Load, small: bool) -> dict[str, list[Point]]:
    """Readers of one stream of two events a second."""
    counts = (1, 4) if small else (1, 10, 100, 1000, 2500, 5000)
    timing = {"seconds": 0.5, "settle": 0.1} if small else {"seconds": 4, "settle": 1}
    return {
        kind: [{"x": count, **_run(generator, kind, "fan_out", c=count, rate=2, **timing)} for count in counts]
        for kind in OURS
    }


def sizes(generator: Load, small: bool) -> dict[str, list[Point]]:
    """Events of a size, as fast as may be, four streams at once."""
    found: dict[str, list[Point]] = {kind: [] for kind in KINDS}
    for size in (16, 65_536) if small else (16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, MIB):
        n = max(20, min(20 if small else 20_000, 100 * MIB // size))
        for kind in KINDS:
            found[kind].append({"x": size, **_run(generator, kind, "streams", c=4, n=n, size=size)})
    return found


def lengths(generator: Load, small: bool) -> dict[str, list[Point]]:
    """One stream of 64 KiB events through a log that keeps 4 MiB."""
    found: dict[str, list[Point]] = {kind: [] for kind in KINDS}
    for length in (1, 8) if small else (1, 4, 16, 64, 256, 1024, 4096):
        for kind in KINDS:
            settings = {"max_stream_bytes": 4 * MIB} if kind in OURS else {}
            options = {"c": 1, "n": length * MIB // 65_536, "size": 65_536}
            found[kind].append({"x": length, **_run(generator, kind, "streams", settings, **options)})
    return found


def idle(generator: Load, small: bool) -> dict[str, list[Point]]:
    """Live streams that say nothing, with one reader each; keep-alives come every 15 seconds."""
    counts, seconds = ((10,), 0.5) if small else ((1000, 10_000), 20)
    return {
        kind: [{"x": count, **_run(generator, kind, "idle", c=count, seconds=seconds)} for count in counts]
        for kind in KINDS
    }


MEASURES = {"streams": streams, "readers": readers, "sizes": sizes, "lengths": lengths, "idle": idle}


def main() -> None:
    """Measure, and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.growth", description="How cost grows.")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(MEASURES)}; none: all")
    parser.add_argument("--small", action="store_true", help="tiny sizes: whether it works, not how it grows")
    parser.add_argument("--json", type=Path, default=RESULTS / "growth.json", help="where to write")
    args = parser.parse_args()
    results: dict[str, Any] = json.loads(args.json.read_text()) if args.json.exists() else {}
    results["machine"] = machine()
    with load() as generator:
        for name in args.names or MEASURES:
            begun = time.monotonic()
            results[name] = MEASURES[name](generator, args.small)
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
