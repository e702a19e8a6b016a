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
        pytest.param(*how.values, base, path, id=f"{how.id}{'-base-http-middleware' * base}-{path}", marks=how.marks)
        for base in (False, True)
        for how in SERVERS
        for path in PATHS
    ],
    lambda case: case.values[2] == PATHS[0] or case.values[:2] == (*SERVERS[0].values, True),
)


@pytest.mark.parametrize(("how", "base", "path"), CASES)
async def test_a_stop_of_a_stream_without_events_breaks_off_quietly(
    how: dict[str, object], base: bool, path: str, tmp_path: Path
) -> None:
    """The connection closes uncleanly, so that the client can tell; the log shows no traceback.

    Granian is made to do so by a return, which a `BaseHTTPMiddleware` takes for an end: there it gets, and logs, an
    exception.
    """
    how = {**how, "env": {"RESUMABLE_TEST_BASE": "1"}} if base else how
    async with running(tmp_path, how) as site:
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
    if not base or how.get("server") != "granian":
        assert not re.search(r"Traceback|ERROR|rror", site.server.output), site.server.output
