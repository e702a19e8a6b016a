"""Whether a stop closes the generator of its stream at once: many stops on every face, without the garbage collector.

    python -m tests.benchmarks.stops                       a thousand for each face and kind of answer
    python -m tests.benchmarks.stops --loop uvloop --stops 100 --only route_class

It prints how long the slowest took, and fails if one took longer than 100 ms of the process's own time.
"""

import argparse
import asyncio
import contextlib
import gc
import platform
import random
import sys
import time
from typing import Any

from tests.support.asgi import Client, running, settle, until
from tests.support.life_apps import RESPONSES, YIELDS, Run, Stage, stage

LIMIT = 0.1
"""Seconds of CPU: a busy machine must not make a stop late."""
PATIENCE = 2.0
IN_THREADS = ("sync generator", "yield sse in def")
"""Kinds whose generators run in threads, where nothing can cancel one that waits."""
FACES = {
    "decorator": RESPONSES,
    "dependency": RESPONSES,
    "both": RESPONSES,
    "route_class": (*RESPONSES, *YIELDS),
    "middleware": (*RESPONSES, *YIELDS),
    "mounted": RESPONSES,
}
MOMENTS = ("before the first byte", "at its await", "in a burst", "in send")


async def _bring_to(moment: str, made: Stage, client: Client, number: int) -> tuple[Any, Run]:
    """Begin a stream and bring it to where it is stopped."""
    stream_id = f"chat-{number}"
    if moment == "before the first byte":
        before = len(made.runs)
        exchange = made.post(client, stream_id)
        run = await made.run(before)
        await run.started.wait()
    else:
        exchange, run = await made.begin(client, stream_id, "one")
        if moment == "in send":
            exchange.stall()
            run.put(*("x" * 1_000 for _ in range(40)))
            await until(lambda: run.yielded > 4)
        elif moment == "in a burst":
            run.put(*("x" * random.choice((1, 100, 1_000)) for _ in range(200)))
    await settle(random.randrange(12))
    return exchange, run


async def _stop(moment: str, made: Stage, client: Client, number: int) -> float:
    """Stop a stream; return how long it took to close its generator, infinity if it was not."""
    exchange, run = await _bring_to(moment, made, client, number)
    if number // len(MOMENTS) % 2:
        # As if other streams had been stopped in the meantime: what lives grows old, and is not looked at next time.
        gc.collect(1)
    begun = time.process_time()
    await client.delete(f"/v1/stream/chat-{number}")
    took = float("inf")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            await run.closed.wait()
            took = time.process_time() - begun
    exchange.resume()
    await exchange.rest()
    made.runs[-1] = run
    return took


async def measure(face: str, kind: str, stops: int) -> dict[str, list[float]]:
    """Stop so many streams; return how long each took, by the moment."""
    made = stage(face, kind, max_stream_bytes=4_000, head_timeout=60)
    moments = MOMENTS[2:] if kind in IN_THREADS else MOMENTS
    took: dict[str, list[float]] = {moment: [] for moment in moments}
    async with running(made.app) as client:
        gc.collect(1)
        gc.disable()
        try:
            for number in range(stops):
                moment = moments[number % len(moments)]
                took[moment].append(await _stop(moment, made, client, number))
        finally:
            gc.enable()
    return took


async def _main(names: list[str], stops: int) -> int:
    failures = 0
    for face, kinds in FACES.items():
        for kind in kinds:
            if names and not any(name in f"{face}/{kind}" for name in names):
                continue
            took = await measure(face, kind, stops)
            every = [seconds for each in took.values() for seconds in each]
            late = {moment: sum(seconds > LIMIT for seconds in each) for moment, each in took.items()}
            failures += sum(late.values())
            closed = [seconds for seconds in every if seconds < float("inf")]
            worst = f"{max(closed, default=0) * 1000:6.1f} ms"
            print(
                f"{face:<12} {kind:<18} {len(every) - sum(late.values()):>5} of {len(every)}  slowest {worst}", end="  "
            )
            print(", ".join(f"{count} {moment}" for moment, count in late.items() if count), flush=True)
    return failures


def main() -> None:
    """Stop, and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--stops", type=int, default=1000)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of faces and kinds, like route/yield")
    args = parser.parse_args()
    factory = None
    if args.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    print(f"Python {platform.python_version()}, {args.loop}")
    with asyncio.Runner(loop_factory=factory) as runner:
        sys.exit(1 if runner.run(_main(args.only, args.stops)) else 0)


if __name__ == "__main__":
    main()
