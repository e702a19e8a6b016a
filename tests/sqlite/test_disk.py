"""What a disk may do to a `SqliteStore`: lose its power between any two writes, hang, and be another one."""

import asyncio
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fastapi_resumable._stream.reader import Reading
from fastapi_resumable._stream.stream import Limits
from fastapi_resumable.exceptions import StoreUnavailable
from fastapi_resumable.models import ResumableStatus
from fastapi_resumable.stores.sqlite.files import WorkerLock
from fastapi_resumable.stores.sqlite.threads import File
from fastapi_resumable.stores.sqlite.transactions import WriterThread
from tests.conformance.tools import KEY, Request, begin, complete, content, following, write, written
from tests.sqlite.faulty import open_stores


class Power:
    """Keeps what is on the disk for sure, should the power fail: what was in the file when it was last waited for."""

    def __init__(self, path: Path, copies: Path, sync: Callable[[int], None]) -> None:
        self._path = path
        self._copies = copies
        self._sync = sync
        self._lock = threading.Lock()
        self._made = 0
        self.latest = copies / "none"

    def fdatasync(self, fd: int) -> None:
        """Stands for `os.fdatasync`."""
        with self._lock:
            self._made += 1
            copy = self._copies / str(self._made)
        copy.mkdir(parents=True)
        # Copied before: what comes while the disk is waited for need not be on it.
        for end in ("", "-wal"):
            shutil.copy(f"{self._path}{end}", copy / f"streams.db{end}")
        self._sync(fd)
        with self._lock:
            # The other thread may be later with a copy that it has begun before.
            if self.latest.name == "none" or int(self.latest.name) < int(copy.name):
                self.latest = copy


def test_what_was_shown_outlives_a_power_cut_between_any_two_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each moment, the disk has all that readers have been shown, here and on another worker."""
    power = Power(tmp_path / "streams.db", tmp_path / "copies", os.fdatasync)
    monkeypatch.setattr(os, "fdatasync", power.fdatasync)
    shown: list[tuple[Path, bytes]] = []

    async def main() -> None:
        here, there = open_stores(tmp_path / "streams.db", 2)
        stream = await begin(here)
        async with following(stream) as near, following(await there.find(KEY, 0)) as far:
            for number in range(12):
                await write(stream, b"data: %d\n\n" % number)
                for reader in (near, far):
                    data = await reader.events(number + 1)
                    shown.append((power.latest, data))
            await complete(here, stream)
            shown.extend([(power.latest, await reader.end()) for reader in (near, far)])
        for store in (here, there):
            await store.aclose()
        monkeypatch.undo()
        for copy, data in shown:
            [survivor] = open_stores(copy / "streams.db", 1)
            found = await survivor.find(KEY, 0)
            assert (await content(found)).startswith(data)
            assert found.status in (ResumableStatus.INTERRUPTED, ResumableStatus.COMPLETED)
            await survivor.aclose()

    asyncio.run(main())
    assert len({copy for copy, _ in shown}) > 6


def test_a_disk_that_hangs_holds_up_nothing_but_what_is_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop goes on, and no reader is shown what the disk may not have."""
    reached, goes_on, sync = threading.Event(), threading.Event(), os.fdatasync

    def hang(fd: int) -> None:
        reached.set()
        goes_on.wait()
        sync(fd)

    async def main() -> None:
        [store] = open_stores(tmp_path / "streams.db", 1, store_timeout=60)
        stream = await begin(store)
        async with following(stream) as near:
            await write(stream, b"data: 1\n\n")
            await near.events(1)
            monkeypatch.setattr(os, "fdatasync", hang)
            before = near.data
            await write(stream, b"data: 2\n\n")
            # Were the disk waited for on the event loop, nothing of what follows would happen.
            await asyncio.to_thread(reached.wait)
            for _ in range(1000):
                await asyncio.sleep(0)
            assert near.data == before
            goes_on.set()
            assert (await near.events(2)).startswith(before)
            await complete(store, stream)
            await near.end()
        await store.aclose()

    asyncio.run(main())


def test_a_disk_that_hangs_ends_the_readings_on_other_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `store_timeout`; it does not wait for as long as the disk does."""
    goes_on, sync = threading.Event(), os.fdatasync

    def hang(fd: int) -> None:
        if threading.current_thread().name == "resumable sqlite read":
            goes_on.wait()
        sync(fd)

    async def main() -> None:
        here, there = open_stores(tmp_path / "streams.db", 2, store_timeout=0.5)
        stream = await begin(here)
        async with following(await there.find(KEY, 0)) as far:
            await write(stream, b"data: 1\n\n")
            await far.events(1)
            monkeypatch.setattr(os, "fdatasync", hang)
            await write(stream, b"data: 2\n\n")
            assert await far.outcome() is Reading.LOST
            goes_on.set()
        monkeypatch.undo()
        await complete(here, stream)
        for store in (here, there):
            await store.aclose()

    asyncio.run(main())


async def test_what_was_given_up_is_not_written_afterwards(tmp_path: Path) -> None:
    """The thread has it in hand, and waits for the file: its stream may have ended otherwise by then."""
    file = File(tmp_path / "streams.db", "full", timeout=0.5)
    thread = WriterThread(file, lambda: None, "worker", Limits(), WorkerLock(file.path, "worker"))
    is_busy, gates, done = threading.Event(), [threading.Event() for _ in range(2)], []

    def wait(gate: threading.Event) -> None:
        is_busy.set()
        gate.wait()

    before = asyncio.create_task(thread.run_all([lambda _: wait(gates[0])]))
    await asyncio.to_thread(is_busy.wait)
    # Both come while it is busy, so it takes them together.
    given_up = [thread.run_all([job]) for job in (lambda _: wait(gates[1]), lambda _: done.append("written"))]
    waiting = asyncio.gather(*given_up, return_exceptions=True)
    await asyncio.sleep(0)
    gates[0].set()
    assert [type(result) for result in await waiting] == [StoreUnavailable] * 2
    gates[1].set()
    thread.close()
    await asyncio.gather(before, thread.wait_closed(), return_exceptions=True)
    assert done == []


def test_a_process_ends_although_its_disk_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`aclose` waits for a moment, and leaves the thread behind."""
    reached, goes_on = threading.Event(), threading.Event()

    def hang(_fd: int) -> None:
        reached.set()
        goes_on.wait()

    async def main() -> None:
        [store] = open_stores(tmp_path / "streams.db", 1, store_timeout=0.5)
        stream = await begin(store)
        monkeypatch.setattr(os, "fdatasync", hang)
        monkeypatch.setattr("fastapi_resumable.stores.sqlite.threads.CLOSING", 0.1)
        await write(stream, b"data: 1\n\n")
        await asyncio.to_thread(reached.wait)
        await store.aclose()
        goes_on.set()

    asyncio.run(main())


async def test_a_store_whose_thread_could_not_start_works_as_soon_as_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system may have no room for one more."""
    [store] = open_stores(tmp_path / "streams.db", 1)

    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(StoreUnavailable):
            await Request(KEY).reserve(store)
    await written(store, b"data: 1\n\n")
    await store.aclose()


def test_a_file_of_something_else_that_takes_the_place_of_ours_is_left_alone(tmp_path: Path) -> None:
    """Requests are refused at once, and its tables stay as they are."""
    path = tmp_path / "streams.db"

    async def main() -> None:
        [store] = open_stores(path, 1, store_timeout=60)
        await written(store, b"data: 1\n\n")
        for end in ("-wal", "-shm"):
            path.with_name(path.name + end).unlink()
        other = sqlite3.connect(tmp_path / "other.db")
        other.execute("CREATE TABLE users (name TEXT)")
        other.close()
        (tmp_path / "other.db").replace(path)
        with pytest.raises(StoreUnavailable):
            await Request(KEY).reserve(store)
        await store.aclose()

    asyncio.run(main())
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("users",)]
    connection.close()
