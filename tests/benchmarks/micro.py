"""What the hot path costs, without sockets and so without much noise.

    python -m tests.benchmarks.micro                   ns per event, framing MB/s, import time: under a minute
    python -m tests.benchmarks.micro --instructions    instructions per event, by valgrind: the same on a busy machine

Every scenario runs n events and then 2n; the difference, divided by n, is what an event costs once a stream runs.
"""

import argparse
import asyncio
import gc
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import uvloop

ROOT = Path(__file__).parent.parent.parent
KINDS = ("plain", "sse-starlette", "native", "resumable", "resumable-ids", "resumable-native")
PACES = {"awaits": "awaits=1", "never awaits": "awaits=0", "50/s": "rate=50"}
SHORT = ("plain", "resumable", "resumable-ids", "resumable-dependency", "resumable-route")
EVENTS_OF_SHORT = 8
"""How many events a short answer has: what it costs is to open and to end its stream."""
STREAMS = 16
"""How many streams share the event loop, so that the turns of the loop itself are shared as on a busy server."""
READERS = 50
REPLAYED_BLOCKS = 40

Run = Callable[[int], Awaitable[None]]


def scenarios() -> dict[str, tuple[str, int, Callable[[], Awaitable[Run]]]]:
    """By name: what is counted, how many of it make a run, and how to prepare a function that runs so many."""
    found: dict[str, tuple[str, int, Callable[[], Awaitable[Run]]]] = {}
    for way in ("send", "uvicorn"):
        for pace in PACES:
            for kind in KINDS:
                events = 1600 if "native" not in kind else 400
                found[f"{way}/{pace}/{kind}"] = ("event", events, _stream(kind, way, pace))
        for kind in SHORT:
            found[f"{way}/short/{kind}"] = ("event", 1600, _short(kind, way))
    found["send/replay/64 KiB block"] = ("block", 400, _replay)
    found["uvicorn/replay/64 KiB block"] = ("block", 400, lambda: _replay("uvicorn"))
    found[f"send/fan-out to {READERS}/delivery"] = ("delivery", 50 * READERS, _fan_out)
    found[f"uvicorn/fan-out to {READERS}/delivery"] = ("delivery", 50 * READERS, lambda: _fan_out("uvicorn"))
    for stamped in (False, True):
        found[f"parts/write{' with ids' if stamped else ''}, no readers"] = ("event", 4000, _write(stamped))
    found["parts/framing"] = ("event", 4000, _frame)
    found["parts/log"] = ("event", 4000, _log)
    return found


def _stream(kind: str, way: str, pace: str) -> Callable[[], Awaitable[Run]]:
    async def prepare() -> Run:
        from .apps import make_app
        from .inprocess import CALLS

        app = make_app(kind)

        async def run(n: int) -> None:
            query = f"n={n // STREAMS}&{PACES[pace]}"
            calls = [CALLS[way](app, "/generate", query, stream_id=f"{number}") for number in range(STREAMS)]
            got = sum(await asyncio.gather(*calls))
            assert got >= n * 128, got

        return run

    return prepare


def _short(kind: str, way: str) -> Callable[[], Awaitable[Run]]:
    async def prepare() -> Run:
        from .apps import make_app
        from .inprocess import CALLS

        app = make_app(kind)
        numbers = itertools.count()

        async def run(n: int) -> None:
            query = f"n={EVENTS_OF_SHORT}"
            for _ in range(n // EVENTS_OF_SHORT):
                got = await CALLS[way](app, "/generate", query, stream_id=f"short-{next(numbers)}")
                assert got >= EVENTS_OF_SHORT * 128, got

        return run

    return prepare


async def _replay(way: str = "send") -> Run:
    from .apps import make_app
    from .inprocess import CALLS

    app = make_app("resumable")
    await CALLS["send"](app, "/generate", f"n={REPLAYED_BLOCKS * 512}&awaits=0", stream_id="replayed")

    async def run(n: int) -> None:
        for _ in range(n // REPLAYED_BLOCKS):
            got = await CALLS[way](app, "/v1/stream/replayed", method="GET")
            assert got >= REPLAYED_BLOCKS * 65_536, got

    return run


async def _fan_out(way: str = "send") -> Run:
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    from fastapi_resumable import Resumable

    from .apps import event
    from .inprocess import CALLS

    resumable = Resumable(event_ids=False)
    app = FastAPI()
    app.include_router(resumable.router)
    numbers = itertools.count()
    joined = asyncio.Event()

    @app.post("/generate")
    @resumable.stream
    async def generate(n: int) -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            yield event(0)
            await joined.wait()
            for number in range(1, n):
                await asyncio.sleep(0.005)
                yield event(number)

        return StreamingResponse(body(), media_type="text/event-stream")

    async def run(n: int) -> None:
        events = n // READERS
        name = f"fan-{next(numbers)}"
        joined.clear()
        calls = [CALLS[way](app, "/generate", f"n={events}", stream_id=name)]
        calls += [CALLS[way](app, f"/v1/stream/{name}", method="GET", stream_id="") for _ in range(READERS - 1)]
        tasks = [asyncio.ensure_future(each) for each in calls]
        while len(resumable.manager._readers) < READERS:  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0)
        joined.set()
        assert min(await asyncio.gather(*tasks)) >= events * 128

    return run


def _new_stream(stamped: bool) -> Any:
    from fastapi_resumable._core.ids import StreamKey
    from fastapi_resumable._core.log import Budget
    from fastapi_resumable._stream.memory import MemoryStream
    from fastapi_resumable._stream.stream import Head, Limits

    head = Head(200, ((b"content-type", b"text/event-stream"),))
    return MemoryStream(
        StreamKey(None, "s"),
        "0123456789abcdef",
        head,
        limits=Limits(event_ids=stamped),
        budget=Budget(),
        started_at=0.0,
        on_stop=lambda _: None,
    )


def _write(stamped: bool) -> Callable[[], Awaitable[Run]]:
    async def prepare() -> Run:
        from .apps import event

        one = event(1).encode()

        async def run(n: int) -> None:
            stream = _new_stream(stamped)
            for _ in range(n):
                stream.offer(one, 0.0)

        return run

    return prepare


async def _frame() -> Run:
    from fastapi_resumable._core.sse import EventFramer

    from .apps import event

    one = event(1).encode()

    async def run(n: int) -> None:
        framer = EventFramer("0123456789abcdef", 1 << 22)
        offset = 0
        for _ in range(n):
            offset += len(framer.feed(one, offset))

    return run


async def _log() -> Run:
    from fastapi_resumable._core.log import ByteLog

    from .apps import event

    one = event(1).encode()

    async def run(n: int) -> None:
        log = ByteLog()
        for _ in range(n):
            log.append(one)

    return run


async def framing_rates(seconds: float) -> dict[str, float]:
    """MB a second through the framer that stamps ids, by the shape of what comes."""
    from fastapi_resumable._core.sse import EventFramer

    def body(size: int) -> bytes:
        return b"data: " + b"x" * (size - 8) + b"\n\n"

    lines = b"".join(b"data: a line of the answer\n" for _ in range(40)) + b"\n"
    shapes: dict[str, list[bytes]] = {
        "16 B events": [body(16)] * 64,
        "128 B events": [body(128)] * 64,
        "4 KiB events": [body(4096)] * 16,
        "64 KiB events": [body(65_536)] * 4,
        "128 B events, 64 in a chunk": [body(128) * 64],
        "128 B events, CR LF": [body(128).replace(b"\n", b"\r\n")] * 64,
        "128 B events, event: and data:": [b"event: message\n" + body(113)] * 64,
        "40 lines of data": [lines] * 16,
        "40 lines of data, CR LF": [lines.replace(b"\n", b"\r\n")] * 16,
        "128 B events, cut anywhere": [(body(128) * 64)[start : start + 100] for start in range(0, 8192, 100)],
    }
    rates = {}
    for shape, chunks in shapes.items():
        framer = EventFramer("0123456789abcdef", 1 << 30)
        offset = size = 0
        begun = time.process_time()
        while (spent := time.process_time() - begun) < seconds:
            for chunk in chunks:
                offset += len(framer.feed(chunk, offset))
                size += len(chunk)
        assert offset > size * 0.99
        rates[shape] = size / spent / 1e6
    return rates


IMPORTS = """
import sys, time
import fastapi, fastapi.responses, uvicorn
begun, before = time.process_time(), set(sys.modules)
import fastapi_resumable
spent = time.process_time() - begun
print(spent * 1000, *sorted({name.partition(".")[0] for name in set(sys.modules) - before if name[0] != "_"}))
"""


def import_time(rounds: int) -> tuple[float, list[str]]:
    """CPU milliseconds that importing the package takes beyond FastAPI and uvicorn; and what it brings along."""
    with tempfile.TemporaryDirectory() as cache:
        # Compiled, as an installed package is, even where Python is told not to write what it has compiled.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}
        command = [sys.executable, "-c", IMPORTS]
        _, *lines = [
            subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
            for _ in range(rounds + 1)
        ]
    modules = [name for name in lines[0].split()[1:] if name not in sys.stdlib_module_names]
    return statistics.median(float(line.split()[0]) for line in lines), modules


# Running scenarios.


async def _measure(names: list[str], scale: float, mark: Callable[[str, int], None], rounds: int) -> None:
    """Run every scenario with n and 2n, each between two marks; `rounds` times, in turns."""
    known = scenarios()
    prepared = {}
    for name in names:
        prepared[name] = await known[name][2]()
    for number in range(rounds + 1):
        for name in names:
            unit = known[name][1]
            n = max(int(unit * scale) // 400 * 400, 400)
            for count in (n, 2 * n) if number else (n,):
                gc.collect()
                mark("", 0)
                await prepared[name](count)
                # The first round only warms up.
                mark(name if number else "", count)
    del prepared


class _Clock:
    """A clock that goes on by a microsecond whenever somebody looks, so that nothing depends on the machine."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.nanoseconds = itertools.count(10**12, 1000).__next__

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


class _Loop(asyncio.SelectorEventLoop):
    """asyncio's event loop on that clock; where there is nothing to do, time jumps to the next timer."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self.clock = self.time = clock  # type: ignore[method-assign]
        self.limiter: Any = None

    def _run_once(self) -> None:
        if not self._ready and self._scheduled and not (self.limiter and self.limiter.borrowed_tokens):
            self.clock.now = max(self.clock.now, self._scheduled[0]._when)
        super()._run_once()


async def _measure_on(loop: _Loop, *args: Any) -> None:
    # Time must not jump while a thread is at work.
    loop.limiter = anyio.to_thread.current_default_thread_limiter()
    await _measure(*args)


def nanoseconds(names: list[str], scale: float, rounds: int) -> dict[str, float]:
    """CPU nanoseconds per unit: the median of some rounds, in which the scenarios take turns."""
    spent: dict[str, dict[int, list[float]]] = {}
    begun = 0.0

    def mark(name: str, count: int) -> None:
        nonlocal begun
        now = time.process_time()
        if name:
            spent.setdefault(name, {}).setdefault(count, []).append(now - begun)
        begun = time.process_time()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_measure(names, scale, mark, rounds))
    result = {}
    for name, by_count in spent.items():
        (n, short), (_, long) = sorted(by_count.items())
        result[name] = statistics.median(b - a for a, b in zip(short, long, strict=True)) / n * 1e9
    return result


def _child(names: list[str], scale: float) -> None:
    """What runs under valgrind."""
    # Before anything is imported that takes them from here.
    clock = _Clock()
    time.monotonic, time.monotonic_ns = clock, clock.nanoseconds
    known: list[Any] = []

    def mark(name: str, count: int) -> None:
        if name or count:
            known.append((name, count))
        else:
            known.append(None)
        os.getsid(0)  # valgrind writes down its count when this is called, and nothing else calls it

    # Importing takes long under valgrind; it starts counting when we are ready.
    from . import apps, inprocess  # noqa: F401

    print("ready", flush=True)
    sys.stdin.readline()
    with asyncio.Runner(loop_factory=lambda: _Loop(clock)) as runner:
        runner.run(_measure_on(runner.get_loop(), names, scale, mark, 1))
    print(json.dumps(known), flush=True)


def instructions(names: list[str], scale: float) -> dict[str, float]:
    """Instructions per unit, as callgrind counts them; what the kernel does is not in it."""
    if shutil.which("valgrind") is None:
        raise SystemExit("There is no valgrind: install it (apt-get install valgrind), or leave out --instructions.")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [
            "valgrind",
            "--tool=callgrind",
            "--instr-atstart=no",
            "--dump-before=getsid",
            "--dump-line=no",
            f"--callgrind-out-file={out}",
            sys.executable,
            *("-m", "tests.benchmarks.micro", "--child", "--scale", str(scale), *names),
        ]
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n", "the child did not start"
            subprocess.run(["callgrind_control", "--instr=on", str(child.pid)], check=True, capture_output=True)
            child.stdin.write("go\n")
            child.stdin.flush()
            known = json.loads(child.stdout.readline())
        assert not Path(f"{out}.{len(known) + 1}").exists(), "something else has made valgrind write down its count"
        counts = [
            int(match[1])
            for number in range(1, len(known) + 1)
            if (match := re.search(r"^(?:summary|totals): (\d+)", Path(f"{out}.{number}").read_text(), re.MULTILINE))
        ]
    assert len(counts) == len(known), (len(counts), len(known))
    spent: dict[str, list[tuple[int, int]]] = {}
    for entry, count in zip(known, counts, strict=True):
        if entry is not None and entry[0]:
            spent.setdefault(entry[0], []).append((entry[1], count))
    return {name: (long - short) / n for name, ((n, short), (_, long)) in spent.items()}


def show(results: dict[str, float], what: str) -> str:
    """A table, with what each scenario costs against plain in the same setting."""
    lines = [f"{'scenario':<44}{what:>20}{'x plain':>10}{'- plain':>10}"]
    for name, value in results.items():
        plain = results.get(f"{name.rpartition('/')[0]}/plain")
        compared = f"{value / plain:>10.2f}{value - plain:>+10,.0f}" if plain else ""
        lines.append(f"{name:<44}{value:>20,.0f}{compared}".rstrip())
    return "\n".join(lines)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="What the hot path costs.")
    parser.add_argument("names", nargs="*", help="parts of the names of scenarios; none: all")
    parser.add_argument("--instructions", action="store_true", help="count instructions under valgrind")
    parser.add_argument("--scale", type=float, default=1.0, help="how many events a run has, relative to the default")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timed runs")
    parser.add_argument("--json", type=Path, help="write the results to a file, too")
    parser.add_argument("--against", type=Path, help="compare with results written before")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    known = scenarios()
    wanted = [{part} if part in known else {name for name in known if part in name} for part in args.names]
    names = [name for name in known if not wanted or any(name in some for some in wanted)]
    if args.child:
        _child(names, args.scale)
        return
    begun = time.monotonic()
    if args.instructions:
        results, what = instructions(names, args.scale), "instructions"
    else:
        results, what = nanoseconds(names, args.scale * 4, args.rounds), "CPU ns"
    print(show(results, f"{what} each"))
    print(f"({time.monotonic() - begun:.0f} s)")
    if not args.instructions and not args.names:
        print("\nframing with ids, MB/s")
        for shape, rate in asyncio.run(framing_rates(0.2 * args.scale)).items():
            print(f"{shape:<44}{rate:>20,.0f}")
        spent, modules = import_time(args.rounds)
        print(f"\nimport beyond FastAPI and uvicorn: {spent:.1f} ms of CPU; brings {', '.join(modules)}")
    if args.against:
        before = json.loads(args.against.read_text())
        print(f"\n{'against ' + str(args.against):<44}{'before':>12}{'now':>12}{'change':>10}")
        for name, value in results.items():
            if name in before:
                print(f"{name:<44}{before[name]:>12,.0f}{value:>12,.0f}{value / before[name] - 1:>+10.1%}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
