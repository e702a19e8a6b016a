"""How a server's log looks after responses that were broken off on purpose: nothing of ours is reported as an error."""

import re
from pathlib import Path

import pytest

from tests.servers.test_shutdown import GRANIAN, HYPERCORN, UVICORNS, running
from tests.support.params import representatives

GRANIAN_UVLOOP = pytest.param({"server": "granian", "loop": "uvloop"}, id="granian-uvloop", marks=pytest.mark.servers)
SERVERS = (*UVICORNS[:2], GRANIAN, GRANIAN_UVLOOP, HYPERCORN)
PATHS = ("/chat", "/depended", "/routed", "/behind")
CASES = representatives(
    [
        pytest.param(
            *how.values,
            bases,
            path,
            id=f"{how.id}{'-behind-base-http-middleware' * bool(bases)}-{path}",
            marks=how.marks,
        )
        for bases in (0, 2)
        for how in SERVERS
        for path in PATHS
    ],
    lambda case: case.values[2] == PATHS[0] or case.values[:2] == (*SERVERS[0].values, 2),
)


@pytest.mark.parametrize(("how", "bases", "path"), CASES)
async def test_a_stop_of_a_stream_without_events_breaks_off_quietly(
    how: dict[str, object], bases: int, path: str, tmp_path: Path
) -> None:
    """The connection closes uncleanly, so that the client can tell; the log shows no traceback.

    Granian is made to do so by a return, which a `BaseHTTPMiddleware` takes for an end: there it gets, and logs, an
    exception.
    """
    async with running(tmp_path, {**how, "env": {"RESUMABLE_TEST_BASES": str(bases)}}) as site:
        stream = await site.post(f"{path}?media_type=application/x-ndjson", "chat-1")
        await stream.read_until(b"begun")
        reader = await site.connect()
        await reader.request("GET", "/v1/stream/chat-1")
        replay = await reader.response()
        await replay.read_until(b"begun")
        other = await site.connect()
        await other.request("DELETE", "/v1/stream/chat-1")
        assert (await other.response()).status == 204
        await stream.read_all()
        await replay.read_all()
        site.server.terminate()
        site.server.wait()
    assert not stream.clean
    assert not replay.clean
    if not bases or how.get("server") != "granian":
        assert not re.search(r"Traceback|ERROR|rror", site.server.output), site.server.output


@pytest.mark.parametrize("how", [UVICORNS[0], GRANIAN, HYPERCORN])
async def test_what_failed_is_replayed_whole_behind_middleware(how: dict[str, object], tmp_path: Path) -> None:
    """Each `BaseHTTPMiddleware` has the last parts on their way for a while; none is lost, and none ends the body."""
    async with running(tmp_path, {**how, "env": {"RESUMABLE_TEST_BASES": "2"}}) as site:
        stream = await site.post("/failing", "chat-1")
        assert await stream.read_all() == b"onetwo"
        assert not stream.clean
        for offset, rest in ((0, b"onetwo"), (3, b"two"), (6, b"")):
            reader = await site.connect()
            await reader.request("GET", f"/v1/stream/chat-1?from={offset}")
            replay = await reader.response()
            assert (replay.status, await replay.read_all(), replay.clean) == (200, rest, False)
