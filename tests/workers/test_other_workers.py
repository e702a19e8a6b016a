"""Other sets of workers, on Redis and on a SQLite file: `uvicorn --workers 4`, and no code but a setting."""

import asyncio
from pathlib import Path

import pytest

from tests.support.apps.player import forever, numbered, send, unique, wait
from tests.support.site import Site, code_of, environment, site_of, until, whole
from tests.support.ssemodel import last_ids, without_ids


@pytest.mark.slow
async def test_uvicorn_with_four_workers_is_one_server(store_url: str, tmp_path: Path) -> None:
    """Twenty streams are begun, followed, resumed and stopped by whichever worker the kernel picks."""
    async with site_of([environment(store_url, tmp_path / "notes")], workers=4) as site:
        await until(lambda: site.servers[0].output.count("startup complete") == 4, "all four workers")
        answered: set[str | None] = set()
        async with asyncio.TaskGroup() as scenes:
            for scene in [resumes_again_and_again] * 20 + [is_stopped] * 5:
                scenes.create_task(scene(site, answered))
        assert len(answered) > 1, "all requests went to one worker"
        assert {entry for _, entry in site.noted() if site.count(entry) > 1} == set()


async def resumes_again_and_again(site: Site, answered: set[str | None]) -> None:
    """A client that hangs up every few events, and gets each of them once."""
    name = unique("id")
    live = await site.player(0).post(name, ["paced", 60, 60, 0.01], name=name)
    answered.add(live.header("x-worker"))
    got = await live.read_until(b"00000010")
    got += await live.read_until(b"\n\n")
    live.connection.reset()
    while b"00000059" not in got:
        reader = await site.player(0).follow(name, headers=[("last-event-id", last_ids(got)[-1])])
        assert reader.status == 200, await reader.read_all()
        answered.add(reader.header("x-worker"))
        number = len(last_ids(got)) + 5
        if number < 60:
            got += await reader.read_until(b"%08d" % number)
            got += await reader.read_until(b"\n\n")
            reader.connection.reset()
        else:
            got += await reader.read_all()
            assert reader.clean
    assert without_ids(got) == whole(60, 60)
    [item] = await site.player(0).lookup(name)
    assert item["status"] == "completed"


async def is_stopped(site: Site, _answered: set[str | None]) -> None:
    """A client whose stream is stopped."""
    name = unique("stopped")
    live = await site.player(0).post(name, send(b"data: 1\n\n"), forever(), name=name)
    await live.read_until(b"\n\n")
    assert (await site.player(0).stop(name)).status == 204
    await site.until_noted(f"CancelledError:{name}")
    assert (await site.player(0).replay(name)).status == 404
    await live.read_all()
    assert code_of(live.body) == "cancelled"


async def test_one_variable_in_the_environment_is_enough(store_url: str, tmp_path: Path) -> None:
    """`FASTAPI_RESUMABLE_STORE=...`, and two workers are one."""
    variable = {"FASTAPI_RESUMABLE_STORE": store_url}
    name, gate = unique("id"), unique("gate")
    async with site_of([{**environment(None, tmp_path / "notes"), **variable}] * 2) as site:
        live = await site.player(0).post(name, numbered(3, 60), wait(gate), numbered(3, 60))
        reader = await site.player(1).follow(name)
        await reader.read_until(b"00000002")
        await site.player(0).open(gate)
        await live.read_all()
        await reader.read_all()
    assert reader.body == live.body
    assert without_ids(reader.body) == whole(3, 60) * 2
