"""What can happen to a SQLite file while workers use it: each fault on real processes and real files."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sqlite.faulty import ANSWERED, begin, fill, goes_unrecorded, remount, within, workers, works_again
from tests.support.apps.player import numbered, unique
from tests.support.site import code_of, environment, site_of, whole
from tests.support.ssemodel import without_ids


async def test_a_full_disk_is_an_outage_and_no_loss(small_disk: Path, tmp_path: Path) -> None:
    """The live stream goes on for its own reader, and is recorded in full as soon as there is room."""
    name, gate = unique("id"), unique("gate")
    async with workers(small_disk, tmp_path) as site:
        live, reader = await begin(site, name, gate)
        ballast = fill(small_disk)
        big = await within(ANSWERED, site.player(0).record(unique("big"), numbered(40, 50_000)))
        assert without_ids(big.body) == whole(40, 50_000)
        await asyncio.to_thread(site.servers[0].wait_for_output, "disk is full")
        await goes_unrecorded(site)
        await site.player(0).open(gate)
        await within(ANSWERED, live.read_all())
        assert without_ids(live.body) == whole(3, 60) * 2
        ballast.unlink()
        await works_again(site)
        await within(ANSWERED, reader.read_all())
        assert reader.body == live.body or code_of(reader.body) == "store_unavailable" or not reader.clean
        assert (await site.player(1).replay(name)).body == live.body


async def test_under_fail_a_full_disk_refuses_new_streams_and_ends_live_ones(small_disk: Path, tmp_path: Path) -> None:
    """503 `store_unavailable`, and `event: error` of that code."""
    name, gate = unique("id"), unique("gate")
    async with workers(small_disk, tmp_path, on_store_failure="fail") as site:
        live, reader = await begin(site, name, gate)
        ballast = fill(small_disk)
        big = await within(2 * ANSWERED, site.player(0).record(unique("big"), numbered(40, 50_000)))
        assert big.status == 503 or code_of(big.body) == "store_unavailable"
        refused = await within(ANSWERED, site.player(0).record(unique("new"), numbered(3, 60)))
        assert refused.status == 503
        assert b"store_unavailable" in refused.body
        assert str(small_disk).encode() not in refused.body
        await site.player(0).open(gate)
        await within(ANSWERED, live.read_all())
        assert code_of(live.body) == "store_unavailable"
        ballast.unlink()
        await works_again(site)
        await within(ANSWERED, reader.read_all())


def take_away(path: Path, how: str) -> None:
    """Delete a file and what belongs to it, or put an empty one in its place."""
    # The file itself goes last: when it is another, workers make all of this again.
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink()
    if how == "deleted":
        # Moved, as it may never be empty: workers put their locks back at once.
        path.with_name(path.name + "-workers").rename(path.with_name("gone"))
        path.unlink()
    else:
        other = path.with_name("other.db")
        other.touch()
        other.replace(path)


@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_a_file_that_is_taken_away_is_made_again(tmp_path: Path, how: str) -> None:
    """The live stream is written anew from what its worker holds, and its readers lose nothing."""
    name, gate = unique("id"), unique("gate")
    # On a busy machine, it takes its time.
    async with workers(tmp_path, tmp_path, store_timeout=60.0) as site:
        live, reader = await begin(site, name, gate)
        await asyncio.to_thread(take_away, tmp_path / "streams.db", how)
        await works_again(site)
        await site.player(0).open(gate)
        await within(ANSWERED, live.read_all())
        assert without_ids(live.body) == whole(3, 60) * 2
        await within(ANSWERED, reader.read_all())
        assert reader.body == live.body or not reader.clean
        replay = await within(ANSWERED, site.player(1).replay(name))
        assert replay.body == live.body


async def test_a_read_only_file_leaves_requests_unrecorded(small_disk: Path, tmp_path: Path) -> None:
    """What was recorded before can be replayed all the same, and all is well once it can be written."""
    name = unique("id")
    async with workers(small_disk, tmp_path) as site:
        before = await site.player(0).record(name, numbered(3, 60))
    await asyncio.to_thread(remount, small_disk, "ro")
    async with workers(small_disk, tmp_path) as site:
        await goes_unrecorded(site)
        await asyncio.to_thread(site.servers[0].wait_for_output, "[Rr]ead-?only|unable to open")
        await asyncio.to_thread(remount, small_disk, "rw")
        await works_again(site)
        assert (await site.player(1).replay(name)).body == before.body


async def test_a_lock_that_is_held_for_less_than_the_timeout_is_no_outage(tmp_path: Path) -> None:
    """Somebody's shell has a transaction open: nobody notices."""
    name = unique("id")
    async with workers(tmp_path, tmp_path) as site:
        shell = sqlite3.connect(tmp_path / "streams.db", isolation_level=None)
        shell.execute("BEGIN IMMEDIATE")
        recording = asyncio.create_task(site.player(1).record(name, numbered(3, 60)))
        await asyncio.to_thread(site.servers[1].wait_for_output, "database is locked")
        shell.execute("ROLLBACK")
        shell.close()
        recorded = await within(ANSWERED, recording)
        assert (await within(ANSWERED, site.player(0).replay(name))).body == recorded.body


async def test_a_damaged_page_harms_its_own_stream_alone(tmp_path: Path) -> None:
    """The others go on; a request for the damaged one gets an error, and no wrong byte."""
    damaged, well = unique("damaged"), unique("well")
    async with workers(tmp_path, tmp_path, count=1, store_timeout=5.0) as site:
        bad = await site.player(0).record(damaged, numbered(1500, 1000))
        good = await site.player(0).record(well, numbered(600, 1000))
    path = tmp_path / "streams.db"
    shell = sqlite3.connect(path)
    shell.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shell.close()
    content = path.read_bytes()
    # The other stream has no events of these numbers; some of them lie across two pages.
    found = [content.find(b"data: %08d " % number) for number in range(700, 800)]
    places = [place // 4096 * 4096 for place in found if place >= 0]
    with path.open("r+b") as file:
        # Not an interior page (it begins with a 2), by which other streams are found.
        file.seek(next(place for place in places if content[place] != 2))
        file.write(os.urandom(4096))
    async with workers(tmp_path, tmp_path, count=1, store_timeout=5.0) as site:
        broken = await within(ANSWERED, site.player(0).replay(damaged))
        if broken.status == 200:
            assert code_of(broken.body) == "store_unavailable" or not broken.clean
            assert bad.body.startswith(broken.body.partition(b"event: error")[0])
        else:
            assert broken.status == 503
        assert (await site.player(0).replay(well)).body == good.body
        await works_again(site)


async def test_two_applications_may_share_a_file(tmp_path: Path) -> None:
    """Each sees what the other has recorded, whatever its own limits are."""
    about = [
        environment(f"sqlite:///{tmp_path}/streams.db", tmp_path / "notes", rooms={"": {"retention": retention}})
        for retention in (60, 3600)
    ]
    async with site_of(about) as site:
        name = unique("id")
        live = await site.player(0).record(name, numbered(3, 60))
        assert (await site.player(1).replay(name)).body == live.body


async def test_shared_memory_need_not_be_mounted(tmp_path: Path) -> None:
    """What workers share lies beside the file."""
    program = (
        "import asyncio\n"
        "from fastapi_resumable import SqliteStore\n"
        "from fastapi_resumable._stream.stream import Limits\n"
        "from tests.conformance.tools import content, written\n"
        "async def main():\n"
        f"    store = SqliteStore({str(tmp_path / 'streams.db')!r})\n"
        "    store.configure(Limits())\n"
        "    print(await content(await written(store, b'data: x\\n\\n')))\n"
        "    await store.aclose()\n"
        "asyncio.run(main())\n"
    )
    command = ["unshare", "--mount", "sh", "-c", 'umount -l /dev/shm && exec "$@"', "sh"]
    run = await asyncio.to_thread(
        subprocess.run, [*command, sys.executable, "-c", program], capture_output=True, timeout=240
    )
    if b"unshare" in run.stderr or b"umount" in run.stderr:
        pytest.skip("mounts can be undone by root alone")
    assert b"data: x" in run.stdout, run.stderr.decode()
