"""The file of a `SqliteStore`: where it may be, what may be in it, and what can be read in it."""

import asyncio
import logging
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from fastapi_resumable import Resumable, SqliteStore
from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._core.lifecycle import REMEMBERED
from fastapi_resumable._stream.stream import Limits
from fastapi_resumable.exceptions import StreamNotFound, StreamPending, TooManyStreams
from fastapi_resumable.models import ResumableStatus
from fastapi_resumable.stores.sqlite import files
from fastapi_resumable.stores.sqlite.log import UNREAD, Logs, Piece
from fastapi_resumable.stores.sqlite.reader import Found, ReaderThread
from fastapi_resumable.stores.sqlite.rows import read_states
from fastapi_resumable.stores.sqlite.transactions import Transactions
from tests.conformance.tools import TEXT, Request, begin, complete, content, following, write, written
from tests.sqlite.faulty import open_stores
from tests.support.site import until

KIB = 1024


@pytest.mark.parametrize(
    ("setting", "path", "synchronous"),
    [
        ("sqlite:///streams.db", Path.cwd() / "streams.db", "full"),
        ("sqlite:////var/lib/app/streams.db", Path("/var/lib/app/streams.db"), "full"),
        ("sqlite:///streams.db?synchronous=normal", Path.cwd() / "streams.db", "normal"),
        ("sqlite:///my%20streams.db", Path.cwd() / "my streams.db", "full"),
        ("data/streams.db", Path.cwd() / "data/streams.db", "full"),
        (Path("/data/streams.db"), Path("/data/streams.db"), "full"),
    ],
)
def test_a_path_or_a_url_names_the_file(setting: object, path: Path, synchronous: str) -> None:
    assert files.parse_path(setting) == (path, synchronous)


@pytest.mark.parametrize(
    "setting",
    ["", "sqlite:", "sqlite://", "sqlite:///", "sqlite://host/x.db", ":memory:", "sqlite:///:memory:",
     "sqlite+aiosqlite:///x.db", "sqlite:///x.db?synchronous=off", "sqlite:///x.db?mode=ro", 7, None],
)  # fmt: skip
def test_anything_else_is_refused_with_an_example(setting: Any) -> None:
    with pytest.raises(ValueError, match=r"sqlite:///streams\.db|synchronous"):
        SqliteStore(setting)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"store_timeout": 0}, "store_timeout must be a positive number"),
        ({"on_store_failure": "ignore"}, "on_store_failure must be 'degrade' or 'fail'"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SqliteStore(tmp_path / "streams.db", **wrong)


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist\. Create it"):
        SqliteStore(tmp_path / "missing" / "streams.db")
    with pytest.raises(ValueError, match="is a directory"):
        SqliteStore(tmp_path)


def test_a_setting_is_enough(tmp_path: Path) -> None:
    assert repr(Resumable(store=f"sqlite:///{tmp_path}/streams.db").store) == f"SqliteStore('{tmp_path}/streams.db')"


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel names it; the deepest mount counts."""
    mounts = tmp_path / "mountinfo"
    here = str(tmp_path).replace(" ", "\\040")
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/root rw\n"
        f"2 1 0:5 / {here} rw shared:1 - nfs4 server:/export rw\n"
        f"3 2 0:6 / {here}/local rw - xfs /dev/sdb rw\n"
        f"4 2 0:7 / {here}/\u6570\u636e\u00a0\u0085 rw - cifs //server/share rw\n",
        encoding="utf-8",
    )
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "deeper").mkdir()
    (tmp_path / "locality").mkdir()
    assert files.file_system(tmp_path, mounts) == "nfs4"
    assert files.file_system(tmp_path / "locality", mounts) == "nfs4"
    assert files.file_system(tmp_path / "local" / "deeper", mounts) == "xfs"
    assert files.file_system(tmp_path / "\u6570\u636e\u00a0\u0085", mounts) == "cifs"
    assert files.file_system(Path("/"), mounts) == "ext4"
    assert files.file_system(tmp_path, tmp_path / "missing") == ""
    monkeypatch.setattr(files, "file_system", lambda _: "nfs4")
    with pytest.raises(ValueError, match=r"network file system \(nfs4\).*use RedisStore"):
        SqliteStore(tmp_path / "streams.db")


def change(path: Path, *statements: str) -> None:
    """Do something to a file with SQLite's own tools."""
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def test_a_file_of_another_version_or_of_something_else_is_refused(tmp_path: Path) -> None:
    """Before the first request, with what to do; and it is left as it is."""
    path = tmp_path / "streams.db"
    asyncio.run(recorded(path))
    SqliteStore(path)
    change(path, "PRAGMA user_version = 99")
    with pytest.raises(ValueError, match=r"another version of fastapi-resumable .*version 99.*new file"):
        SqliteStore(path)
    other = tmp_path / "other.db"
    change(other, "CREATE TABLE users (name TEXT)")
    with pytest.raises(ValueError, match="SQLite database of something else"):
        SqliteStore(other)


async def recorded(path: Path) -> None:
    """Record one stream."""
    [store] = open_stores(path, 1)
    await written(store, b"data: \xe2\x98\x83\n\n")
    await store.aclose()


def test_the_tables_can_be_read_with_any_tool(tmp_path: Path) -> None:
    """As the documentation says: streams, and their bytes."""
    path = tmp_path / "streams.db"
    asyncio.run(recorded(path))
    connection = sqlite3.connect(path)
    [(owner, stream_id, status, size)] = connection.execute(
        "SELECT owner, id, status, (SELECT sum(length(data)) FROM chunks WHERE chunks.stream = streams.stream) "
        "FROM streams"
    )
    assert (owner, stream_id, status) == ("ann", "chat", "completed")
    assert size > len(b"data: \xe2\x98\x83\n\n")
    assert connection.execute("SELECT count(*) FROM workers").fetchone() == (0,)
    connection.close()
    assert not list((tmp_path / "streams.db-workers").iterdir())


def test_a_link_to_the_file_is_the_file(tmp_path: Path) -> None:
    """Workers that name it in two ways are workers of one file."""
    (tmp_path / "data").mkdir()
    (tmp_path / "link.db").symlink_to(tmp_path / "data" / "streams.db")

    async def main() -> None:
        here, there = SqliteStore(tmp_path / "data" / "streams.db"), SqliteStore(f"sqlite:///{tmp_path}/link.db")
        for store in (here, there):
            store.configure(Limits())
        stream = await begin(here)
        async with following(await there.find(stream.key, 0)) as far:
            await write(stream, b"data: 1\n\n")
            await far.events(1)
            await written(there, b"data: 2\n\n", key=StreamKey("ann", "other"))
            [item] = await there.lookup("ann", ["chat"])
            assert item.status is ResumableStatus.IN_PROGRESS
            await complete(here, stream)
            await far.end()
        for store in (here, there):
            await store.aclose()

    asyncio.run(main())
    assert {each.name for each in tmp_path.iterdir()} == {"data", "link.db"}


def test_a_lookup_takes_no_longer_in_a_large_file(tmp_path: Path) -> None:
    """It searches for each id, rather than compare each stream with all ids."""
    connection = files.connect(tmp_path / "streams.db", 1.0)
    connection.execute(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) "
        "INSERT INTO streams (epoch, id, worker, status, requested_at, expires_at, headers) "
        "SELECT 'epoch ' || i, 'id ' || i, 'worker', 'completed', 0, 9e9, '[]' FROM n"
    )
    steps = list[int]()
    # Called after so many steps of SQLite's machine.
    connection.set_progress_handler(lambda: steps.append(1000), 1000)
    assert len(read_states(connection, None, [f"id {i}" for i in range(1, 1001)], with_variants=True)) == 1000
    assert sum(steps) < 1_000_000
    connection.close()


def test_to_read_what_has_ended_writes_nothing(tmp_path: Path) -> None:
    """Neither where its readers are, nor that they have left."""
    path = tmp_path / "streams.db"

    async def main() -> None:
        here, there = open_stores(path, 2)
        stream = await written(here, b"data: 1\n\n")
        outside = sqlite3.connect(path)
        version = outside.execute("PRAGMA data_version").fetchone()
        async with following(await there.find(stream.key, 0)) as far:
            await far.end()
        assert there._backend is not None
        await there._backend.queue.flush()
        assert outside.execute("PRAGMA data_version").fetchone() == version
        outside.close()
        for store in (here, there):
            await store.aclose()

    asyncio.run(main())


def used(path: Path) -> int:
    """Bytes of the file and its log."""
    return sum(each.stat().st_size for each in path.parent.glob(path.name + "*") if each.is_file())


def test_all_workers_together_keep_within_max_total_bytes(tmp_path: Path) -> None:
    """The oldest answers go first, whoever has written them; when live streams fill it, new ones are refused."""
    path = tmp_path / "streams.db"

    async def main() -> None:
        here, there = open_stores(path, 2, max_total_bytes=1024 * KIB, max_stream_bytes=512 * KIB)
        for number in range(40):
            store = (here, there)[number % 2]
            await written(store, b"x" * 60 * KIB, key=StreamKey(None, str(number)), head=TEXT)
        with pytest.raises(StreamNotFound):
            await here.find(StreamKey(None, "0"), 0)
        assert len(await content(await there.find(StreamKey(None, "39"), 0))) == 60 * KIB
        found = await here.lookup(None, [str(number) for number in range(40)])
        assert [int(item.conversation_id) for item in found] == list(range(40 - len(found), 40))
        assert 8 <= len(found) <= 17
        live = [
            await begin(store, StreamKey(None, f"live {number}"), TEXT) for number, store in enumerate((here, there))
        ]
        for stream in live:
            for _ in range(10):
                await write(stream, b"y" * 60 * KIB)
        with pytest.raises(TooManyStreams):
            await Request(StreamKey(None, "new")).reserve(here)
        for stream, store in zip(live, (here, there), strict=True):
            await complete(store, stream)
        await Request(StreamKey(None, "new")).reserve(there)
        for store in (here, there):
            await store.aclose()

    asyncio.run(main())


def test_room_is_given_back_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the retention, the file is about as small as it was."""
    monkeypatch.setattr("fastapi_resumable.stores.sqlite.backend.UPKEEP", 0.1)
    path, most = tmp_path / "streams.db", list[int]()

    async def main() -> None:
        [store] = open_stores(path, 1, retention=4.0)
        for number in range(40):
            await written(store, *[b"x" * 60 * KIB] * 4, key=StreamKey(None, str(number)), head=TEXT)
            most.append(used(path))
        assert max(most) > 3 * 1024 * KIB
        connection = sqlite3.connect(path)
        await until(lambda: connection.execute("SELECT count(*) FROM streams").fetchone() == (0,), "the clean-up")
        await until(lambda: connection.execute("PRAGMA page_count").fetchone()[0] < 512, "the room")
        connection.close()
        await store.aclose()
        # The connection that is closed last copies the log; a store waits no longer than two seconds for its threads.
        await until(lambda: used(path) < max(most) / 2, "the smaller file")

    asyncio.run(main())


def test_what_was_stopped_or_replaced_goes_when_it_is_read_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not its whole retention later; while it is read elsewhere, it stays."""
    monkeypatch.setattr("fastapi_resumable.stores.sqlite.backend.UPKEEP", 0.05)
    monkeypatch.setattr("fastapi_resumable.stores.sqlite.log.UNREAD", 0.1)
    path = tmp_path / "streams.db"

    async def main() -> None:
        here, there = open_stores(path, 2)
        stream = await begin(here, head=TEXT)
        await write(stream, *[b"x" * 60 * KIB] * 8)
        async with following(await there.find(stream.key, 0)) as far:
            await far.reach(1)
            await here.stop(stream.key, None)
        connection = sqlite3.connect(path)
        await until(lambda: connection.execute("SELECT count(*) FROM chunks").fetchone() == (0,), "the clean-up")
        connection.close()
        for store in (here, there):
            await store.aclose()

    asyncio.run(main())


def test_what_is_known_of_a_stopped_stream_is_not_given_up_for_room(tmp_path: Path) -> None:
    """Its producer may not have heard of the stop, and would begin a stream anew that the file has forgotten."""
    path = tmp_path / "streams.db"

    async def main() -> None:
        here, there = open_stores(path, 2, max_total_bytes=1024 * KIB, max_stream_bytes=512 * KIB)
        stream = await begin(here, head=TEXT)
        await there.stop(stream.key, None)
        for number in range(40):
            await written(there, b"x" * 60 * KIB, key=StreamKey(None, str(number)), head=TEXT)
        connection = sqlite3.connect(path)
        assert connection.execute("SELECT gone FROM streams WHERE epoch = ?", (stream.epoch,)).fetchall() == [
            ("cancelled",)
        ]
        assert connection.execute("SELECT count(*) FROM streams").fetchone()[0] < 40
        connection.close()
        for store in (here, there):
            await store.aclose()

    asyncio.run(main())


def test_a_clean_up_holds_nothing_up_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its time is over, it leaves the rest to the next, which goes on soon until nothing is left."""
    monkeypatch.setattr("fastapi_resumable.stores.sqlite.backend.UPKEEP", 0.05)
    monkeypatch.setattr("fastapi_resumable.stores.sqlite.log.STEP", 0.0)
    monkeypatch.setattr("fastapi_resumable.stores.sqlite.backend.PAUSE", 0.0)
    path = tmp_path / "streams.db"
    asyncio.run(recorded(path))
    change(
        path,
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20) "
        "INSERT INTO streams (epoch, id, worker, status, requested_at, expires_at) "
        "SELECT 'epoch ' || i, 'id ' || i, 'gone', 'completed', 0, i FROM n",
    )
    left = []
    clean_up = Transactions.clean_up

    def counted(transactions: Transactions) -> bool:
        is_more = clean_up(transactions)
        query = "SELECT count(*) FROM streams WHERE expires_at <= 20"
        left.append(transactions.logs._execute(query).fetchone()[0])
        return is_more

    async def main() -> None:
        [store] = open_stores(path, 1)
        monkeypatch.setattr(Transactions, "clean_up", counted)
        await store.lookup("ann", ["chat"])
        await until(lambda: bool(left) and left[-1] == 0, "the clean-ups")
        await store.aclose()

    asyncio.run(main())
    assert left[:20] == list(range(19, -1, -1))


def test_a_clean_up_deletes_many_logs_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of streams that were stopped or replaced: all at once, they would hold up every worker for a second."""
    monkeypatch.setattr("fastapi_resumable.stores.sqlite.log.STEP", 0.0)
    connection = files.connect(tmp_path / "streams.db", 1.0)
    for number in range(3):
        connection.execute(
            "INSERT INTO streams (epoch, id, worker, status, gone, requested_at, expires_at) "
            "VALUES (?, ?, 'worker', 'cancelled', 'cancelled', 0, ?)",
            (f"epoch {number}", f"id {number}", time.time() + REMEMBERED - UNREAD),
        )
        connection.execute("INSERT INTO chunks SELECT stream, 1, 'x' FROM streams WHERE id = ?", (f"id {number}",))
    logs, left = Logs(connection, "worker", Limits()), []
    while logs.clean_up():
        left.append(connection.execute("SELECT count(*) FROM chunks").fetchone()[0])
    connection.close()
    assert left == [2, 1]


def test_a_limit_that_was_lowered_holds_nothing_up_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no longer fits goes one after the other, and new streams begin meanwhile."""
    monkeypatch.setattr("fastapi_resumable.stores.sqlite.log.STEP", 0.0)
    path = tmp_path / "streams.db"

    async def main(store: SqliteStore, count: int) -> list[int]:
        left = []
        connection = sqlite3.connect(path)
        for number in range(count):
            await written(store, b"x" * 60 * KIB, key=StreamKey(None, f"{count} {number}"), head=TEXT)
            left.append(connection.execute("SELECT count(*) FROM streams").fetchone()[0])
        connection.close()
        await store.aclose()
        return left

    asyncio.run(main(*open_stores(path, 1), 20))
    left = asyncio.run(main(*open_stores(path, 1, max_total_bytes=256 * KIB, max_stream_bytes=64 * KIB), 4))
    assert 20 > left[0] > left[-1] > 10


@pytest.mark.parametrize("failure", [AttributeError, RuntimeError, OSError, sqlite3.OperationalError, MemoryError])
@pytest.mark.parametrize(
    "place",
    ["sqlite.transactions.Transactions.write", "sqlite.transactions.Transactions._apply",
     "sqlite.reader.ReaderThread._find", "sqlite.reader.ReaderThread.work", "sqlite.transactions.WriterThread.work",
     "sqlite.threads.FileThread.open", "sqlite.threads.FileThread._take", "shared.queue.WriteQueue._hand_out"],
)  # fmt: skip
def test_no_thread_and_no_task_ends_with_what_it_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, failure: type[Exception]
) -> None:
    """It counts as an outage, and passes: nothing is lost."""
    module, _, name = f"fastapi_resumable.stores.{place}".rpartition(".")
    path = f"{module}.{name}"
    holder = resolve_name(module)
    original = getattr(holder, name)
    left = [3]

    def fails(*given: Any, **named: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            raise failure("as the test says")
        return original(*given, **named)

    async def main() -> None:
        here, there = open_stores(tmp_path / "streams.db", 2)
        stream = await begin(here)
        async with following(await there.find(stream.key, 0)) as far:
            await write(stream, b"data: 1\n\n")
            await far.events(1)
            monkeypatch.setattr(path, fails)
            await write(stream, b"data: 2\n\n")
            await far.events(2)
            await here.lookup("ann", ["chat"])
            await complete(here, stream)
            seen = await far.end()
        assert seen == await content(await here.find(stream.key, 0))
        [item] = await there.lookup("ann", ["chat"])
        assert item.status is ResumableStatus.COMPLETED
        await written(there, b"data: 3\n\n")
        for store in (here, there):
            await store.aclose()

    asyncio.run(main())


def test_a_look_that_failed_once_is_no_outage_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Although nothing happens in the file afterwards: or the next failure, much later, would end all readings."""
    find = ReaderThread._find
    left = [1]

    def fails_once(reader: ReaderThread, *given: Any) -> Found:
        if left:
            left.pop()
            raise sqlite3.OperationalError("disk I/O error")
        return find(reader, *given)

    async def main() -> None:
        here, there = open_stores(tmp_path / "streams.db", 2)
        stream, unread = await begin(here), await begin(here, StreamKey("ann", "unread"))
        async with following(await there.find(stream.key, 0)) as far:
            await write(stream, b"data: 1\n\n")
            await far.events(1)
            monkeypatch.setattr(ReaderThread, "_find", fails_once)
            # The file is another one then, in nothing that matters there.
            await write(unread, b"data: 2\n\n")
            await until(lambda: "can be read again" in caplog.text, "the end of the outage")
        for each in (stream, unread):
            await complete(here, each)
        for store in (here, there):
            await store.aclose()

    asyncio.run(main())


async def test_a_report_that_fails_ends_no_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even of a stream that looks do not find: its worker is putting it back."""
    here, there = open_stores(tmp_path / "streams.db", 2)
    stream = await begin(here)
    view = await there.find(stream.key, 0)

    def fails(*_: object) -> None:
        raise sqlite3.DatabaseError("as the test says")

    async with following(view) as far:
        await write(stream, b"data: 1\n\n")
        await far.events(1)
        there._backend._take(view, Piece(stream.epoch, is_missing=True))
        monkeypatch.setattr(Logs, "report", fails)
        # Together with something that can be written, so it is not tried again.
        there._backend.queue.run_later(lambda _: None)
        view.report()
        await until(lambda: "could not be handled" in caplog.text, "the failure")
        monkeypatch.undo()
        await write(stream, b"data: 2\n\n")
        await far.events(2)
        await complete(here, stream)
        await far.end()
    for store in (here, there):
        await store.aclose()


def test_nothing_is_kept_for_hours_when_the_clock_is_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the file says of a later time is deleted: changes, and readers that would hold their producers."""
    monkeypatch.setattr("fastapi_resumable.stores.sqlite.backend.UPKEEP", 0.05)
    path = tmp_path / "streams.db"
    asyncio.run(recorded(path))
    change(path, "UPDATE changes SET at = at + 36000", "INSERT INTO readers SELECT stream, 'w', 0, 9e9 FROM streams")

    async def main() -> None:
        [store] = open_stores(path, 1)
        await store.lookup("ann", ["chat"])
        connection = sqlite3.connect(path)
        query = "SELECT (SELECT count(*) FROM changes), (SELECT count(*) FROM readers)"
        await until(lambda: connection.execute(query).fetchone() == (0, 0), "the clean-up")
        connection.close()
        await store.aclose()

    asyncio.run(main())


def test_a_log_handler_that_fails_keeps_no_stream_of_a_dead_worker_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is called on the event loop: no transaction waits for it, or fails with what it raises."""
    path, seen = tmp_path / "streams.db", list[threading.Thread]()
    asyncio.run(recorded(path))
    change(path, "UPDATE streams SET status = 'in_progress', expires_at = NULL, worker = 'dead'",
           "INSERT INTO workers VALUES ('dead', 1, 0)")  # fmt: skip

    def fails(record: logging.LogRecord) -> bool:
        if "is interrupted" in record.msg:
            seen.append(threading.current_thread())
            raise RuntimeError("as the test says")
        return True

    async def main() -> None:
        [store] = open_stores(path, 1)
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        [item] = await store.lookup("ann", ["chat"])
        assert item.status is ResumableStatus.INTERRUPTED
        await store.aclose()

    logger = logging.getLogger("fastapi_resumable")
    logger.addFilter(fails)
    try:
        asyncio.run(main())
    finally:
        logger.removeFilter(fails)
    assert seen == [threading.current_thread()]


def test_a_look_that_fails_loses_no_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although it had read of it already: a request that is queued here would hear of it by nothing else."""
    sync = ReaderThread.sync
    is_failing, failures = [False], list[None]()

    def fails(reader: ReaderThread) -> None:
        if is_failing[0]:
            failures.append(None)
            raise OSError("disk I/O error")
        sync(reader)

    async def main() -> None:
        here, there = open_stores(tmp_path / "streams.db", 2)
        request = await Request(StreamKey("ann", "queued")).reserve(here)
        stream = await begin(there)
        async with following(stream) as near, following(await here.find(stream.key, 0)) as far:
            await write(stream, b"data: 1\n\n")
            await far.events(1)
            monkeypatch.setattr(here._backend._reader, "sync", lambda: fails(here._backend._reader))
            is_failing[0] = True
            await write(stream, b"data: 2\n\n")
            await near.events(2)
            await there.stop(StreamKey("ann", "queued"), None)
            failures.clear()
            await until(lambda: len(failures) > 3, "some looks")
            is_failing[0] = False
            assert await request.told() == "cancelled"
            await far.events(2)
            await complete(there, stream)
            await far.end()
            await near.end()
        for store in (here, there):
            await store.aclose()

    asyncio.run(main())


async def test_a_look_that_is_given_up_loses_no_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that watches may leave while the file is read for it, and nothing may change in it afterwards."""
    here, there = open_stores(tmp_path / "streams.db", 2)
    request = await Request().reserve(here)
    reader = here._backend._reader
    is_read, goes_on = threading.Event(), threading.Event()

    def wait() -> None:
        is_read.set()
        goes_on.wait()

    with monkeypatch.context() as patch:
        patch.setattr(ReaderThread, "tick", lambda _: 0.001)
        await there.stop(request.reservation.key, None)
        patch.setattr(reader, "sync", wait)
        watch = asyncio.create_task(here.watch("ann", ["other"], lambda _: None))
        await asyncio.to_thread(is_read.wait)
        watch.cancel()
        await asyncio.wait({watch})
    goes_on.set()
    assert await request.told() == "cancelled"
    for store in (here, there):
        await store.aclose()


def test_the_error_of_a_system_without_file_locks_names_what_to_use() -> None:
    """Windows has no `fcntl`."""
    code = "import sys; sys.modules['fcntl'] = None; import fastapi_resumable as f; f.Resumable(store='sqlite:///x.db')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: SqliteStore needs the file locks" in result.stderr


async def test_a_request_that_is_to_follow_another_waits_for_pending_timeout(tmp_path: Path) -> None:
    """However long the other one takes to begin, and whichever worker it waits on."""
    here, there = open_stores(tmp_path / "streams.db", 2)
    await Request().reserve(here)
    for store in (here, there):
        late = Request()
        late.reservation.pending_timeout = 0.01
        with pytest.raises(StreamPending):
            await late.reserve(store, "attach")
    for store in (here, there):
        await store.aclose()
