"""Which functions an event goes through, and how many bytecodes each of them executes for it. Python 3.12 or newer.

`python -m tests.benchmarks.bytecodes [KIND] [QUERY]`: the kinds are those of `apps`, by default `resumable`; the query
is that of the streams, by default 50 events a second.
"""

import asyncio
import logging
import sys
from collections import Counter
from pathlib import Path
from types import CodeType

import uvloop

from .apps import make_app
from .inprocess import call_uvicorn

STREAMS = 8
SECONDS = 2.0
TOOL = 3


async def count(kind: str, query: str) -> tuple[Counter[CodeType], int]:
    """Bytecodes by function, and the number of events, of some streams for some seconds."""
    executed: Counter[CodeType] = Counter()
    begun: Counter[str] = Counter()
    app = make_app(kind)
    calls = [
        asyncio.ensure_future(call_uvicorn(app, "/generate", f"n=1000000&{query}", stream_id=f"{number}"))
        for number in range(STREAMS)
    ]
    await asyncio.sleep(0.5)
    monitoring = sys.monitoring
    events = monitoring.events
    monitoring.use_tool_id(TOOL, "bytecodes")
    monitoring.register_callback(TOOL, events.INSTRUCTION, lambda code, _offset: executed.update((code,)))
    monitoring.register_callback(TOOL, events.PY_START, lambda code, _offset: begun.update((code.co_name,)))
    monitoring.set_events(TOOL, events.INSTRUCTION | events.PY_START)
    await asyncio.sleep(SECONDS)
    monitoring.set_events(TOOL, 0)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    return executed, begun["event"]


def main() -> None:
    """Count, and print."""
    kind = sys.argv[1] if len(sys.argv) > 1 else "resumable"
    # The requests are cut off at the end, and uvicorn would say so.
    logging.disable()
    query = sys.argv[2] if len(sys.argv) > 2 else "rate=50"
    executed, events = uvloop.run(count(kind, query))
    for code, number in executed.most_common():
        if number >= events / 2:
            print(f"{number / events:8.1f}  {Path(code.co_filename).name}: {code.co_qualname}")
    print(f"{executed.total() / events:8.1f}  in all, for each of {events:,} events")


if __name__ == "__main__":
    main()
