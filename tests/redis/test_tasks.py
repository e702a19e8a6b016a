"""No background task of a store can die: whatever an await of it raises, the worker serves streams afterwards."""

import asyncio
import gc
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from itertools import product
from typing import Any
from uuid import uuid4

import pytest

from fastapi_resumable import RedisStore
from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._stream import tasks
from fastapi_resumable._stream.stream import Limits
from fastapi_resumable._stream.tasks import Tasks
from fastapi_resumable.exceptions import StoreUnavailable
from fastapi_resumable.stores.redis import backend, worker
from tests.conformance.tools import TEXT, Request, complete, content, following, write
from tests.support.params import representatives
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.redis

ERRORS = [
    AttributeError("'NoneType' object has no attribute '_add_writer'"),
    OSError("nobody expected this"),
]
NAMES = ["start", "appender", "follower", "lease", "lapse", "look-out"]
Place = tuple[tuple[str, int], ...]


class Saboteur:
    """Makes each await of the tasks of one name raise once: where a task waits for the first time, it raises."""

    def __init__(self, name: str, error: Exception) -> None:
        self.places: set[Place] = set()
        self._name = name
        self._error = error

    def spawn(self, spawn: Callable[..., asyncio.Task[Any]]) -> Callable[..., asyncio.Task[Any]]:
        """What takes the place of `Tasks.spawn`."""

        def spawn_interrupted(owner: Tasks, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
            return spawn(owner, self._run(coroutine) if name == self._name else coroutine, name)

        return spawn_interrupted

    async def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return await self._interrupted(coroutine)

    @types.coroutine
    def _interrupted(self, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        error: BaseException | None = None
        while True:
            try:
                awaited = coroutine.send(None) if error is None else coroutine.throw(error)
            except StopIteration as done:
                return done.value
            if (place := place_of(coroutine)) not in self.places:
                self.places.add(place)
                if awaited is not None:
                    awaited._asyncio_future_blocking = False  # as a task would do that takes it
                error = type(self._error)(*self._error.args)
                continue
            error = None
            try:
                yield awaited
            except BaseException as exc:  # it is the coroutine's to handle
                error = exc


def place_of(coroutine: Any) -> Place:
    """The lines at which a coroutine and all that it awaits stand."""
    lines = []
    while (frame := getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)) is not None:
        lines.append((frame.f_code.co_qualname, frame.f_lineno))
        coroutine = coroutine.cr_await if hasattr(coroutine, "cr_await") else coroutine.gi_yieldfrom
    return tuple(lines)


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens every second happens all the time."""
    monkeypatch.setattr(backend, "LOOK", 0.01)
    monkeypatch.setattr(worker, "GRACE", 0.0)
    monkeypatch.setattr(tasks, "LONGEST_PAUSE", 0.05)


@pytest.fixture
def prefix(redis_server: RedisServer) -> Iterator[str]:
    """A prefix for one test, under which all keys expire."""
    prefix = f"tasks-{uuid4().hex}"
    yield prefix
    assert redis_server.list_keys_without_expiry(f"{prefix}*") == []


async def exercise(here: RedisStore, there: RedisStore) -> None:
    """A stream that is written here and followed there, and one that is stopped from there."""
    key = StreamKey(None, f"id-{uuid4().hex}")
    stream = await attempt(lambda: Request(key).begin(here, TEXT))
    async with following(await attempt(lambda: there.find(key, 1))) as reader:
        for number in range(3):
            await write(stream, b"%d" % number)
            assert await reader.reach(number + 1) == b"012"[: number + 1]
        await complete(here, stream)
        assert await reader.end() == b"012"
    assert await content(await attempt(lambda: there.find(key, 1))) == b"012"
    request = Request(StreamKey(None, f"stopped-{uuid4().hex}"))
    await attempt(lambda: request.begin(here, TEXT))
    await attempt(lambda: there.stop(request.reservation.key, None))
    assert await request.told() == "cancelled"


async def attempt(call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """What a client does that is told to try again in a moment."""
    while True:
        try:
            return await call()
        except StoreUnavailable:
            await asyncio.sleep(0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # connections that were half made
@pytest.mark.parametrize(
    ("name", "error"),
    representatives(product(NAMES, ERRORS), lambda case: case[1] is ERRORS[NAMES.index(case[0]) % 2]),
)
async def test_whatever_an_await_of_a_task_raises_the_worker_goes_on(
    redis_server: RedisServer, prefix: str, brisk: None, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    """Each place at which the task waits, those in the Redis client included, raises once; streams work all along."""
    saboteur = Saboteur(f"resumable {name}", error)
    monkeypatch.setattr(Tasks, "spawn", saboteur.spawn(Tasks.spawn))
    here, there = (RedisStore(redis_server.url, key_prefix=prefix, lease=2.0, store_timeout=5.0) for _ in range(2))
    for store in (here, there):
        store.configure(Limits())
    try:
        known, quiet = 0, 0
        while quiet < 15:
            await exercise(here, there)
            quiet = quiet + 1 if len(saboteur.places) == known else 0
            known = len(saboteur.places)
        assert known >= 2
        await exercise(there, here)
    finally:
        await here.aclose()
        await there.aclose()
        gc.collect()


async def test_entries_that_are_dropped_before_they_are_read_are_no_failure(
    redis_server: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis wakes the reader of a stream that was added to and trimmed at once, as a small log is, and has nothing."""
    here, there = (RedisStore(redis_server.url, key_prefix=prefix) for _ in range(2))
    for store in (here, there):
        store.configure(Limits())
    client = redis_server.client()
    try:
        await exercise(here, there)
        for inbox in client.scan_iter(f"{prefix}*inbox*"):
            with client.pipeline(transaction=True) as both:
                both.xadd(inbox, {"kind": "dropped"}, id="18446744073709551-0")
                both.xtrim(inbox, maxlen=0)
                both.execute()
        await exercise(here, there)
    finally:
        client.close()
        await here.aclose()
        await there.aclose()
    assert [text for record in caplog.records if "follower" in (text := record.getMessage())] == []
