"""Where a client continues: from an offset, from an event id of ours, or from one of the application's own."""

import asyncio
from typing import TypeVar

from .._core.ids import parse_event_id
from .._core.search import Search, search_dispatch, search_event_id
from ..exceptions import OffsetLost, OffsetOutOfRange, StreamReplaced, UnknownEventId
from .stream import Stream

T = TypeVar("T")


async def find_position(stream: Stream, offset: int | None, last_event_id: str | None) -> int:
    """Turn what a client asks for into an offset; `last_event_id` wins.

    Raises:
        OffsetLost: The bytes there were dropped.
        OffsetOutOfRange: The offset is past the tail.
        StreamReplaced: The event id is of another epoch.
        UnknownEventId: No event in the log has that id.
    """
    position = offset or 0
    if last_event_id:
        event_id = parse_event_id(last_event_id)
        if event_id is None:
            return await _after_event(stream, last_event_id)
        if event_id.epoch != stream.epoch:
            try:
                # It may be the application's own: what it passes on was recorded by another server of this kind.
                return await _after_event(stream, last_event_id)
            except UnknownEventId:
                raise StreamReplaced from None
        position = event_id.offset
    # Before the look at what is kept: an offset past the end was never valid, so it must not read as lost.
    if position > stream.tail:
        raise OffsetOutOfRange(stream.tail)
    if position < (earliest := stream.earliest):
        raise OffsetLost(earliest)
    return position


async def _after_event(stream: Stream, event_id: str) -> int:
    start = stream.earliest
    found = None
    if stream.head.is_event_stream:
        # A list, because the log may be trimmed between two steps of the search.
        found = await run_search(search_event_id(list(await stream.blocks(start)), event_id))
    if found is None:
        raise UnknownEventId(
            "No event in the log has that id; it was dropped, or never sent. Resume with from=, or start over."
        )
    return start + found


async def is_exhausted(stream: Stream, offset: int) -> bool:
    """Whether the stream has ended and nothing from `offset` on would make a client dispatch an event."""
    if not stream.is_final:
        return False
    if not stream.head.is_event_stream:
        return offset == stream.tail
    return not await run_search(search_dispatch(list(await stream.blocks(offset))))


async def run_search(search: Search[T]) -> T:
    """Run a search through a log to its end, and let others run between two steps of it."""
    while True:
        try:
            next(search)
        except StopIteration as end:
            result: T = end.value
            return result
        await asyncio.sleep(0)
