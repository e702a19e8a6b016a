"""Requests that get in each other's way, on one store or on two that share a backing."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._core.lifecycle import OnConflict
from fastapi_resumable._stream.stream import Stream
from fastapi_resumable.exceptions import StreamCancelled, StreamExists, StreamNotFound, StreamReplaced
from fastapi_resumable.stores.base import Store

from .tools import EVENTS, KEY, Request, begin, complete, content, in_turn, write

RULES = pytest.mark.parametrize("rule", ["replace", "attach", "reject"])
OUTCOMES = pytest.mark.parametrize("outcome", ["begin", "release", "stop"])
FATES = pytest.mark.parametrize("fate", ["complete", "stop", "replace"])
"""What becomes of a stream."""
STOPS = pytest.mark.parametrize("fate", ["stop", "replace"])
"""What becomes of a request that does not begin, by somebody else's hand."""
FOLLOWS = pytest.mark.parametrize(
    ("rule", "key"), [("attach", None), ("replace", "k"), ("reject", "k")], ids=["attach", "replace", "reject"]
)
"""Rules under which a request follows another one, with the idempotency key of both."""


async def round_trips(store: Store) -> None:
    """Let a store do what it does meanwhile, however long it takes for that."""
    for _ in range(10):
        await asyncio.sleep(0)
        await store.lookup(KEY.owner, [KEY.id])


@asynccontextmanager
async def in_line(
    here: Store, there: Store, first: Request, second: Request, rule: OnConflict
) -> AsyncIterator[tuple[asyncio.Future[Stream | None], asyncio.Event]]:
    """Queue `first` on `here`, and let `second` wait for it on `there`; it goes on only while the event is set."""
    await first.reserve(here)
    # A first request may take longer: not the one that is to wait.
    await Request(StreamKey(None, "first of all")).reserve(there)
    turn = asyncio.Event()
    turn.set()
    waiting = asyncio.ensure_future(in_turn(there.reserve(second.reservation, rule), turn))
    await asyncio.sleep(0)
    # What is written after it has been written says that it has, however busy the machine is.
    await Request(StreamKey(None, "after it")).reserve(there)
    await round_trips(there)
    assert not waiting.done()
    try:
        yield waiting, turn
    finally:
        turn.set()


async def waits_for_another(here: Store, there: Store, rule: OnConflict, key: str | None, outcome: str) -> None:
    """A request on `there` that is to follow one which is still queued on `here`."""
    first, second = Request(idempotency_key=key), Request(idempotency_key=key)
    async with in_line(here, there, first, second, rule) as (waiting, _):
        if outcome == "begin":
            stream = await first.begin(here)
            followed = await waiting
            assert followed is not None
            assert followed.epoch == stream.epoch == first.epoch
        elif outcome == "release":
            await here.release(first.reservation)
            assert await waiting is None
            assert (await there.begin(second.reservation, EVENTS)).epoch == second.epoch
        else:
            await there.stop(KEY, None)
            with pytest.raises(StreamCancelled):
                await waiting
            assert await first.told() == "cancelled"


async def misses_the_stream(here: Store, there: Store, rule: OnConflict, key: str | None, fate: str) -> None:
    """A request on `there` waits for one on `here` whose stream is over before the other has its turn."""
    first, second = Request(idempotency_key=key), Request(idempotency_key=key)
    async with in_line(here, there, first, second, rule) as (waiting, turn):
        turn.clear()
        stream = await first.begin(here)
        await write(stream, b"data: one\n\n")
        if fate == "complete":
            await complete(here, stream)
        elif fate == "stop":
            await here.stop(KEY, None)
        else:
            await complete(here, await begin(here))
    [got] = await asyncio.gather(waiting, return_exceptions=True)
    if not isinstance(got, Request | BaseException):
        assert got is not None
        assert got.epoch == stream.epoch
        assert (await content(got)).startswith(b"data: one\n")
    else:
        # A store need not keep what is there for nobody else.
        assert type(got) is {"stop": StreamCancelled, "replace": StreamReplaced}.get(fate)


async def misses_the_stop(here: Store, there: Store, rule: OnConflict, key: str | None, fate: str) -> None:
    """A request on `there` waits for one on `here` that has been stopped, and let go, before the other has its turn."""
    first, second = Request(idempotency_key=key), Request(idempotency_key=key)
    async with in_line(here, there, first, second, rule) as (waiting, turn):
        turn.clear()
        if fate == "stop":
            await here.stop(KEY, None)
        else:
            await begin(here)
        await first.told()
        await here.release(first.reservation)
        await round_trips(here)
    with pytest.raises(StreamCancelled if fate == "stop" else StreamReplaced):
        await waiting


async def finds_what_is_queued(here: Store, there: Store, outcome: str) -> None:
    """Somebody on `there` asks for a stream that is still queued on `here`."""
    request = await Request().reserve(here)
    waiting = asyncio.ensure_future(there.find(KEY, 60))
    done, _ = await asyncio.wait({waiting}, timeout=0.02)
    assert not done
    if outcome == "begin":
        stream = await request.begin(here)
        assert (await waiting).epoch == stream.epoch == request.epoch
        return
    await (here.release(request.reservation) if outcome == "release" else there.stop(KEY, None))
    with pytest.raises(StreamNotFound):
        await waiting


async def reserve_all(stores: Sequence[Store], requests: Sequence[Request], rule: OnConflict) -> list[Any]:
    """Queue requests at the same instant, on the stores in turn; what each call returns or raises."""
    calls = [stores[index % len(stores)].reserve(each.reservation, rule) for index, each in enumerate(requests)]
    return await asyncio.gather(*calls, return_exceptions=True)


async def one_of_many(stores: list[Store], rule: OnConflict) -> None:
    """Many requests for one id at the same instant, on the stores in turn."""
    requests = [Request() for _ in range(8)]
    if rule == "attach":
        await one_follows_the_other(stores, requests, rule)
        return
    results = await reserve_all(stores, requests, rule)
    winners = [index for index, result in enumerate(results) if result is None]
    if rule == "reject":
        assert len(winners) == 1
        assert all(isinstance(each, StreamExists) for index, each in enumerate(results) if index not in winners)
    else:
        assert len(winners) == len(requests)
    calls = [stores[index % len(stores)].begin(requests[index].reservation, EVENTS) for index in winners]
    streams = await asyncio.gather(*calls, return_exceptions=True)
    begun = [each for each in streams if not isinstance(each, BaseException)]
    assert all(isinstance(each, StreamReplaced) for each in streams if isinstance(each, BaseException))
    current = await stores[0].find(KEY, 0)
    for store in stores:
        assert (await store.find(KEY, 0)).epoch == current.epoch in [each.epoch for each in begun]
        assert [item.epoch for item in await store.lookup(KEY.owner, [KEY.id])] == [current.epoch]
    for index in winners:
        if requests[index].epoch != current.epoch:
            assert await requests[index].told() == "replaced"
    assert [each.epoch for each in begun if not each.closed] == [current.epoch]


async def one_of_many_retries(stores: list[Store]) -> None:
    """Many requests with one idempotency key at the same instant."""
    await one_follows_the_other(stores, [Request(idempotency_key="retry") for _ in range(8)], "replace")


async def one_follows_the_other(stores: list[Store], requests: list[Request], rule: OnConflict) -> None:
    """The first that is queued begins, and all the others get its stream."""
    calls = [
        asyncio.ensure_future(stores[index % len(stores)].reserve(each.reservation, rule))
        for index, each in enumerate(requests)
    ]
    [first], others = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    assert first.result() is None
    winner = calls.index(first)
    stream = await stores[winner % len(stores)].begin(requests[winner].reservation, EVENTS)
    for other in others:
        followed = await other
        assert followed is not None
        assert followed.epoch == stream.epoch == requests[winner].epoch
    assert all(each.codes == [] for each in requests)
