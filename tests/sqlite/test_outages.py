"""Outages of a SQLite file that last or come again, and files that no process may use: each on real processes."""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.sqlite.faulty import ANSWERED, begin, fill, goes_unrecorded, remount, within, workers, works_again
from tests.support.apps.player import forever, numbered, unique, wait
from tests.support.site import code_of, until, whole
from tests.support.ssemodel import without_ids

SHELL = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN " + sys.argv[2])
print("locked", flush=True)
sys.stdin.read()
"""


@asynccontextmanager
async def locked(path: Path, how: str) -> AsyncIterator[None]:
    """Another process with an open transaction."""
    shell = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SHELL, str(path), how, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert shell.stdout is not None
    assert (await shell.stdout.readline()) == b"locked\n"
    try:
        yield
    finally:
        shell.kill()
        await shell.wait()


@pytest.mark.parametrize("how", ["IMMEDIATE", "EXCLUSIVE"])
async def test_a_lock_that_outlasts_all_timeouts_ends_streams_under_fail(tmp_path: Path, how: str) -> None:
    """What was shown is kept, replays are answered meanwhile, and all is well when the lock is released."""
    name, before, gate = unique("id"), unique("before"), unique("gate")
    async with workers(tmp_path, tmp_path, on_store_failure="fail") as site:
        done = await site.player(0).record(before, numbered(3, 60))
        live, reader = await begin(site, name, gate)
        async with locked(tmp_path / "streams.db", how):
            refused = await within(ANSWERED, site.player(1).record(unique("new"), numbered(3, 60)))
            assert (refused.status, b"store_unavailable" in refused.body) == (503, True)
            await site.player(0).open(gate)
            await within(ANSWERED, live.read_all())
            assert code_of(live.body) == "store_unavailable"
            assert (await within(ANSWERED, site.player(1).replay(before))).body == done.body
        await works_again(site)
        await within(ANSWERED, reader.read_all())
        assert code_of(reader.body) == "producer_lost"
        shown = live.body.partition(b"event: error")[0]
        replay = await within(ANSWERED, site.player(1).replay(name))
        assert replay.body == reader.body
        assert replay.body.startswith(shown)


async def test_a_lock_that_outlasts_all_timeouts_leaves_streams_to_their_own_readers(tmp_path: Path) -> None:
    """Under `degrade`, they end as usual for these, and are recorded in full afterwards; a stop is kept, too."""
    name, stopped, gate = unique("id"), unique("stopped"), unique("gate")
    async with workers(tmp_path, tmp_path) as site:
        live, reader = await begin(site, name, gate)
        other = await site.player(0).post(stopped, numbered(3, 60), forever(), name=stopped)
        await other.read_until(b"00000002")
        async with locked(tmp_path / "streams.db", "EXCLUSIVE"):
            await goes_unrecorded(site)
            await site.player(0).open(gate)
            await within(ANSWERED, live.read_all())
            assert without_ids(live.body) == whole(3, 60) * 2
            assert (await within(ANSWERED, site.player(0).stop(stopped))).status == 204
            await within(ANSWERED, other.read_all())
            assert code_of(other.body) == "cancelled"
        await works_again(site)
        await within(ANSWERED, reader.read_all())
        assert reader.body == live.body
        assert (await site.player(1).replay(name)).body == live.body


async def test_a_server_that_starts_while_the_file_is_locked_can_read_it(tmp_path: Path) -> None:
    """It needs the lock for nothing but to write."""
    name = unique("id")
    async with workers(tmp_path, tmp_path, count=1) as site:
        done = await site.player(0).record(name, numbered(3, 60))
    async with locked(tmp_path / "streams.db", "EXCLUSIVE"), workers(tmp_path, tmp_path, count=1) as site:
        assert (await site.player(0).replay(name)).body == done.body
        assert [item["status"] for item in await site.player(0).lookup(name)] == ["completed"]


async def test_a_disk_that_is_full_again_and_again_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    """As long as each time is shorter than `store_timeout`, the stream waits, and goes on."""
    name = unique("id")
    # Room for all that is written, and for the write-ahead log.
    await asyncio.to_thread(remount, small_disk, "size=24m")
    async with workers(small_disk, tmp_path, store_timeout=120.0) as site:
        gates = [unique("gate") for _ in range(3)]
        steps = [step for gate in gates for step in (numbered(20, 2000), wait(gate))]
        live = await site.player(0).post(name, *steps, numbered(100, 2000), name=name)
        reader = await site.player(1).follow(name)
        for gate in gates:
            await live.read_until(b"00000019")
            ballast = fill(small_disk)
            await site.player(0).open(gate)
            await asyncio.to_thread(site.servers[0].wait_for_output, "disk is full")
            ballast.unlink()
        await within(ANSWERED, live.read_all())
        await within(ANSWERED, reader.read_all())
        assert without_ids(live.body) == whole(20, 2000) * 3 + whole(100, 2000)
        assert reader.body == live.body
        assert (await site.player(1).replay(name)).body == live.body


async def test_workers_live_on_when_their_lock_files_are_deleted(tmp_path: Path) -> None:
    """They make them anew; no stream of theirs is taken for lost, and one that dies afterwards is known to be dead."""
    name, gate, doomed = unique("id"), unique("gate"), unique("doomed")
    locks = tmp_path / "streams.db-workers"
    async with workers(tmp_path, tmp_path, count=2) as site:
        live, reader = await begin(site, name, gate)
        lost = await site.player(0).post(doomed, numbered(3, 60), forever(), name=doomed)
        await lost.read_until(b"00000002")
        follower = await site.player(1).follow(doomed)
        await follower.read_until(b"00000002")
        files = {each.name for each in locks.iterdir()}
        shutil.rmtree(locks)
        # Whatever is asked meanwhile.
        items = await site.player(1).lookup(name, doomed)
        assert [item["status"] for item in items] == ["in_progress"] * 2
        await until(lambda: locks.is_dir() and {each.name for each in locks.iterdir()} == files, "the locks")
        await site.player(0).open(gate)
        await live.read_all()
        await reader.read_all()
        assert without_ids(live.body) == whole(3, 60) * 2
        assert reader.body == live.body
    assert code_of(follower.body) != "producer_lost"


async def test_a_worker_whose_lock_file_was_deleted_can_die(tmp_path: Path) -> None:
    """It is known to be dead, and its id is free."""
    name, gate = unique("id"), unique("gate")
    locks = tmp_path / "streams.db-workers"
    async with workers(tmp_path, tmp_path, count=2) as site:
        _, reader = await begin(site, name, gate)
        os.kill(site.pid(0), signal.SIGSTOP)
        shutil.rmtree(locks)
        # A frozen one cannot make its file anew, so it is taken for dead in the end.
        await within(ANSWERED, reader.read_all())
        assert code_of(reader.body) == "producer_lost"
        os.kill(site.pid(0), signal.SIGCONT)
        again = await site.player(1).record(name, numbered(3, 60))
        assert (await site.player(0).replay(name)).body == again.body


def start(store: str, *, mounts: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Start uvicorn with a store that it cannot use; with `mounts` in place of what the kernel says is mounted."""
    program = "from fastapi import FastAPI\nfrom fastapi_resumable import Resumable\n"
    program += "app = FastAPI()\napp.include_router(Resumable().router)\n"
    directory = Path(store.removeprefix("sqlite:///")).parent
    (directory / "unusable_store.py").write_text(program)
    command = [sys.executable, "-m", "uvicorn", "unusable_store:app", "--port", "0", "--app-dir", str(directory)]
    if mounts is not None:
        # Within a mount namespace of its own, in the process that uvicorn takes over.
        mount = f'mount --bind "{mounts}" /proc/$$/mountinfo && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", mount, "sh", *command]
    return subprocess.run(
        command, env={**os.environ, "FASTAPI_RESUMABLE_STORE": store}, capture_output=True, timeout=240, check=False
    )


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("PRAGMA user_version = 99", b"was made by another version of fastapi-resumable"),
        ("CREATE TABLE users (name TEXT)", b"is a SQLite database of something else"),
    ],
)
async def test_no_server_starts_on_a_file_that_it_cannot_use(tmp_path: Path, statement: str, sentence: bytes) -> None:
    """It says what to do, and ends."""
    path = tmp_path / "streams.db"
    if "user_version" in statement:
        async with workers(tmp_path, tmp_path, count=1) as site:
            await site.player(0).record(unique("id"), numbered(3, 60))
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.close()
    run = await asyncio.to_thread(start, f"sqlite:///{path}")
    assert run.returncode != 0
    assert sentence in run.stderr
    assert b"Give the store a" in run.stderr


async def test_no_server_starts_on_a_network_file_system(tmp_path: Path) -> None:
    """As the kernel names it."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text("1 0 0:5 / / rw shared:1 - nfs4 server:/export rw\n")
    run = await asyncio.to_thread(start, f"sqlite:///{tmp_path}/streams.db", mounts=mounts)
    if b"unshare" in run.stderr or b"mount:" in run.stderr:
        pytest.skip("mounts can be changed by root alone")
    assert run.returncode != 0
    assert b"is on a network file system (nfs4)" in run.stderr
    assert b"use RedisStore" in run.stderr
