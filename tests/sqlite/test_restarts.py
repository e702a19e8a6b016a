"""What a SQLite file keeps over a kill, a restart and a stopped worker."""

import asyncio
import os
import signal
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._stream.stream import WritableStream
from fastapi_resumable.models import ResumableStatus
from fastapi_resumable.stores.sqlite.transactions import WriterThread
from tests.conformance.tools import KEY, Request, begin, complete, content, following, write
from tests.sqlite.faulty import open_stores
from tests.support.apps.player import forever, numbered, send, sends, unique, wait
from tests.support.params import representatives
from tests.support.site import code_of, drain, environment, site_of, until
from tests.support.ssemodel import last_ids, without_ids


def worker_environment(directory: Path, **more: object) -> dict[str, str]:
    """A worker on the file in a directory."""
    return environment(f"sqlite:///{directory}/streams.db", directory / "notes", **more)  # type: ignore[arg-type]


async def test_a_worker_that_is_killed_is_known_to_be_dead_at_once(tmp_path: Path) -> None:
    """Its readers elsewhere end with `producer_lost`, a lookup says `interrupted`, and the id is free."""
    name, queued = unique("id"), unique("queued")
    async with site_of([worker_environment(tmp_path)] * 3) as site:
        live = await site.player(0).post(name, numbered(3, 60), forever(), name=name)
        posting = asyncio.create_task(site.player(0).post(queued, before=[wait("never")]))
        await site.player(0).waits_at("never")
        readers = [await site.player(worker).follow(name) for worker in (1, 1, 2)]
        for reader in (live, *readers):
            await reader.read_until(b"00000002")
        site.servers[0].kill()
        for reader in readers:
            await reader.read_all()
        assert [code_of(reader.body) for reader in readers] == ["producer_lost"] * 3
        assert len({reader.body for reader in readers}) == 1
        assert [item["status"] for item in await site.player(2).lookup(name, queued)] == ["interrupted"]
        assert (await site.player(1).replay(name)).body == readers[0].body
        again = await site.player(1).record(name, send(b"data: again\n\n"))
        assert without_ids(again.body) == b"data: again\n\n"
        posting.cancel()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["terminate", "kill"])
async def test_a_restart_keeps_what_was_recorded(tmp_path: Path, how: signal.Signals) -> None:
    """What had finished is replayed; what was live is interrupted, with what there is of it, and its id is free."""
    finished, live_id, text_id = unique("finished"), unique("live"), unique("text")
    async with site_of([worker_environment(tmp_path)] * 2) as site:
        done = await site.player(0).record(finished, numbered(50, 60))
        live = await site.player(0).post(live_id, numbered(3, 60), forever())
        text = await site.player(1).post(text_id, send(b"some text"), forever(), media_type="text/plain")
        shown = await live.read_until(b"00000002")
        await text.read(9)
        for server in site.servers:
            os.kill(server.pid, how)
        for server in site.servers:
            await asyncio.to_thread(server.wait)
    async with site_of([worker_environment(tmp_path)] * 2) as site:
        assert (await site.player(0).replay(finished)).body == done.body
        tail = await site.player(1).resume(finished, last_ids(done.body)[-1])
        assert tail.status == 204
        items = await site.player(1).lookup(finished, live_id, text_id)
        assert [item["status"] for item in items] == ["completed", "interrupted", "interrupted"]
        replay = await site.player(1).replay(live_id)
        assert replay.body.startswith(shown)
        assert code_of(replay.body) == ("interrupted" if how is signal.SIGTERM else "producer_lost")
        plain = await site.player(0).replay(text_id)
        assert (plain.body, plain.clean) == (b"some text", False)
        again = await site.player(0).record(live_id, send(b"data: again\n\n"))
        assert without_ids(again.body) == b"data: again\n\n"
        assert (await site.player(1).replay(live_id)).body == again.body


async def test_a_server_that_exits_at_once_has_one_end_for_all_readers(tmp_path: Path) -> None:
    """Ctrl-C, and once more: uvicorn waits for nothing then, and its event loop cancels everything."""
    name = unique("id")
    # A bound for what is written last that no busy machine reaches.
    about = worker_environment(tmp_path, rooms={"": {"shutdown_grace": 600.0}}, store={"store_timeout": 400.0})
    async with site_of([about] * 2) as site:
        live = await site.player(0).post(name, numbered(3, 60), forever(), name=name)
        reader = await site.player(1).follow(name)
        for each in (live, reader):
            await each.read_until(b"00000002")
        os.kill(site.pid(0), signal.SIGINT)
        await asyncio.to_thread(site.servers[0].wait_for_output, "CTRL\\+C to force quit")
        os.kill(site.pid(0), signal.SIGINT)
        bodies = [await drain(each) for each in (live, reader)]
        await asyncio.to_thread(site.servers[0].wait)
        replay = await site.player(1).replay(name)
        assert code_of(replay.body) == code_of(bodies[1]) == "interrupted"
        assert replay.body == bodies[1]
        assert replay.body.startswith(bodies[0])


@pytest.mark.parametrize("attempt", representatives(range(3), (0).__eq__))
async def test_what_was_shown_before_a_kill_can_be_replayed_after_it(tmp_path: Path, attempt: int) -> None:
    """Many streams at any place of theirs: what each client has got is the beginning of what there is of its stream."""
    names = [unique("id") for _ in range(20)]
    async with site_of([worker_environment(tmp_path)] * 2) as site:
        shown = [await site.player(0).post(name, ["paced", 100_000, 60, 0.001]) for name in names]
        elsewhere = [await site.player(1).follow(name) for name in names]
        for number, reader in enumerate((*shown, *elsewhere)):
            await reader.read_until(b"%08d" % (5 + attempt * 7 + number % 5))
        for server in site.servers:
            os.kill(server.pid, signal.SIGKILL)
        await asyncio.gather(*(reader.read_all() for reader in (*shown, *elsewhere)))
    async with site_of([worker_environment(tmp_path)]) as site:
        for name, here, there in zip(names, shown, elsewhere, strict=True):
            replay = await site.player(0).replay(name)
            assert replay.body.startswith(here.body)
            assert replay.body.startswith(there.body)
            assert code_of(replay.body) == "producer_lost"


def stands_still(pid: int) -> bool:
    """Whether all threads of a process stand still."""
    try:
        return all(" T " in (thread / "stat").read_text() for thread in Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        # One of them has just ended.
        return False


async def freeze(pid: int, path: Path) -> None:
    """Stop a worker that writes, at a moment at which it does not hold the file's lock: that would be an outage."""
    outside = sqlite3.connect(path, timeout=0, isolation_level=None)
    while True:
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: stands_still(pid), "the stop")
        try:
            outside.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)
        else:
            outside.close()
            return


async def test_a_stopped_worker_is_not_dead_and_writes_nothing_once_another_has_its_id(tmp_path: Path) -> None:
    """Its stream stays live while it stands still; replaced meanwhile, not a byte of it gets into the new epoch."""
    kept, taken = unique("kept"), unique("taken")
    async with site_of([worker_environment(tmp_path)] * 2) as site:
        frozen, other = site.player(0), site.player(1)
        live = [await frozen.post(name, ["paced", 100_000, 60, 0.001], name=name) for name in (kept, taken)]
        for each in live:
            await each.read_until(b"00000020")
        reader = await other.follow(kept)
        await reader.read_until(b"00000020")
        await freeze(site.pid(0), tmp_path / "streams.db")
        # The other worker looks at the locks twice a second.
        begun = time.monotonic()
        await until(lambda: time.monotonic() - begun > 1.5, "several looks")
        assert [item["status"] for item in await other.lookup(kept, taken)] == ["in_progress", "in_progress"]
        new = await other.record(taken, *sends(b"data: new\n\n"))
        assert without_ids(new.body) == b"data: new\n\n"
        os.kill(site.pid(0), signal.SIGCONT)
        await site.until_noted(f"ended:{taken}")
        await live[1].read_all()
        assert code_of(live[1].body) == "replaced"
        assert (await frozen.replay(taken)).body == new.body == (await other.replay(taken)).body
        seen = len(reader.body)
        await reader.read(seen + 200)
        assert (await other.stop(kept)).status == 204
        await site.until_noted(f"ended:{kept}")
        await reader.read_all()
        assert code_of(reader.body) == "cancelled"


async def test_a_stream_whose_end_was_forgotten_is_not_begun_anew(tmp_path: Path) -> None:
    """Its worker stood still when it was stopped, and for so long that the file has nothing of it any more."""
    [store] = open_stores(tmp_path / "streams.db", 1)
    request = Request()
    stream = await request.begin(store)
    async with following(stream) as near:
        await write(stream, b"data: 1\n\n")
        await near.events(1)
        shell = sqlite3.connect(tmp_path / "streams.db")
        with shell:
            for table in ("chunks", "streams", "changes"):
                shell.execute(f"DELETE FROM {table}")
        await write(stream, b"data: 2\n\n")
        assert await request.told() == "cancelled"
        await near.end()
    assert await store.lookup(KEY.owner, [KEY.id]) == []
    assert shell.execute("SELECT count(*) FROM streams").fetchone() == (0,)
    shell.close()
    await store.aclose()


async def test_a_copy_that_is_put_back_gets_the_streams_that_it_lacks(tmp_path: Path) -> None:
    """It was made while their worker lived, which it knows."""
    path, copy = tmp_path / "streams.db", tmp_path / "copy.db"
    [store] = open_stores(path, 1)
    first = await begin(store, StreamKey("ann", "first"))
    shell = sqlite3.connect(path)
    shell.execute("VACUUM INTO ?", (str(copy),))
    shell.close()
    stream = await begin(store)
    async with following(stream) as near:
        await write(stream, b"data: 1\n\n")
        await near.events(1)
        for end in ("-wal", "-shm"):
            path.with_name(path.name + end).unlink()
        copy.replace(path)
        await write(stream, b"data: 2\n\n")
        await near.events(2)
        for each in (stream, first):
            await complete(store, each)
        assert await near.end() == await content(await store.find(KEY, 0))
    await store.aclose()


async def test_a_watch_goes_on_after_changes_that_were_forgotten(tmp_path: Path) -> None:
    """It gets the state that there is now, if its worker stood still for longer than changes are kept."""
    [store] = open_stores(tmp_path / "streams.db", 1)
    stream = await begin(store)
    seen = asyncio.Queue[ResumableStatus]()
    remove = await store.watch(KEY.owner, [KEY.id], lambda item: seen.put_nowait(item.status))
    shell = sqlite3.connect(tmp_path / "streams.db")
    with shell:
        shell.execute("UPDATE streams SET status = 'interrupted', code = 'producer_lost', expires_at = 9e9")
        shell.execute("INSERT INTO changes SELECT 1000, 0, owner, epoch, worker, status, code, '' FROM streams")
        shell.execute("DELETE FROM changes")
    assert await seen.get() is ResumableStatus.INTERRUPTED
    shell.close()
    remove()
    await complete(store, stream)
    await store.aclose()


def test_the_locks_of_dead_workers_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of those that had begun no stream, of which the database knows nothing."""
    monkeypatch.setattr("fastapi_resumable.stores.sqlite.backend.UPKEEP", 0.05)
    [store] = open_stores(tmp_path / "streams.db", 1)

    async def main() -> None:
        stream = await begin(store)
        dead = tmp_path / "streams.db-workers" / "0123456789abcdef"
        dead.touch()
        await until(lambda: not dead.exists(), "the clean-up")
        [own] = dead.parent.iterdir()
        await complete(store, stream)
        await store.aclose()
        assert not own.exists()

    asyncio.run(main())


@pytest.mark.parametrize("fails", ["never", "at the end", "before"])
def test_an_event_loop_may_end_before_the_store_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    """As in a script, or with a test client: the loop waits for no stream, and no thread and no lock is left."""
    before = set(threading.enumerate())
    [store] = open_stores(tmp_path / "streams.db", 1)

    async def produce(stream: WritableStream) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await complete(store, stream)

    async def fail(*_: object) -> None:
        raise RuntimeError("as the test says")

    async def main() -> asyncio.Task[None]:
        stream = await begin(store)
        async with following(stream) as near:
            await write(stream, b"data: 1\n\n")
            await near.events(1)
        producer = asyncio.create_task(produce(stream))
        await asyncio.sleep(0)
        if fails != "never":
            monkeypatch.setattr(WriterThread, "run_all", fail)
        if fails == "before":
            monkeypatch.setattr("fastapi_resumable._stream.tasks.FIRST_PAUSE", 1.0)
            await write(stream, b"data: 2\n\n")
            await until(lambda: "it starts again" in caplog.text, "the failure")
        return producer

    async def look() -> None:
        [item] = await store.lookup(KEY.owner, [KEY.id])
        assert item.is_done
        await store.aclose()

    assert asyncio.run(main()).cancelled()
    for thread in set(threading.enumerate()) - before:
        thread.join()
    monkeypatch.undo()
    asyncio.run(look())
