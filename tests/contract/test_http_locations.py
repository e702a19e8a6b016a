"""Where the routes are, and that `Content-Location` leads there whatever lies in front."""

from collections.abc import Sequence
from urllib.parse import quote

import httpx
import pytest

from tests.support.rawhttp import Reply, fetch
from tests.support.server import serve

PLACES = [
    ("plain", "", "/chat", "/v1"),
    ("own_prefix", "", "/chat", "/streams/of"),
    ("prefixed", "", "/deep/er/chat", "/api/v1"),
    ("of_tenants", "", "/t/a%20b/7/chat", "/t/a%20b/v1"),
    ("nested", "", "/outer/chat", "/outer/inner/v1"),
    ("mounted", "", "/sub/deep/er/chat", "/sub/api/v1"),
    ("twice_mounted", "", "/top/sub/deep/er/chat", "/top/sub/api/v1"),
    ("endpoint_mounted", "", "/sub/chat", "/api/v1"),
    ("told_root_path", "/proxied", "/chat", "/proxied/api/v1"),
]
PROXIED = [
    ("plain", "/chat", "/proxy/v1"),
    ("prefixed", "/deep/er/chat", "/proxy/api/v1"),
    ("mounted", "/sub/deep/er/chat", "/proxy/sub/api/v1"),
    ("endpoint_mounted", "/sub/chat", "/proxy/api/v1"),
]


async def leads_back(port: int, start: str, routes: str, strip: str) -> None:
    """Start a stream at `start`, then follow what the answers say; a proxy in front takes `strip` off."""
    for stream_id in ("plain", "a/b c::é%", ".."):
        named: Sequence[tuple[str, str]] = [("x-conversation-id", stream_id)]
        first = await fetch(port, "POST", start, named, b"")
        assert first.status == 200, first.body
        location = first.header("content-location") or ""
        assert location.startswith(f"{routes}/stream"), location
        target = location.removeprefix(strip)
        for reply in (await fetch(port, "GET", target), await fetch(port, "HEAD", target)):
            assert reply.status == 200
            assert reply.header("content-location") == location
        assert (await fetch(port, "GET", target)).body == first.body
        accepted: Reply = await fetch(port, "POST", start, [*named, ("prefer", "respond-async")], b"")
        assert accepted.status == 202
        assert (accepted.header("location") or "").startswith(f"{routes}/stream")
        followed = await fetch(port, "GET", (accepted.header("location") or "").removeprefix(strip))
        assert (followed.status, len(followed.body)) == (200, len(first.body))
        by_query = f"{routes.removeprefix(strip)}/stream?conv_id={quote(stream_id, safe='')}"
        assert (await fetch(port, "GET", by_query)).body == followed.body


@pytest.mark.parametrize(("app", "strip", "start", "routes"), PLACES, ids=[place[0] for place in PLACES])
async def test_content_location_is_right_wherever_the_router_is(app: str, strip: str, start: str, routes: str) -> None:
    """Under prefixes of the facade, of the include, of an outer router; under mounts; under the app's own root path."""
    with serve("tests.support.apps.placed:" + app, args=["--factory"]) as server:
        await leads_back(server.port, start, routes, strip)


@pytest.mark.parametrize(("app", "start", "routes"), PROXIED, ids=[place[0] for place in PROXIED])
async def test_content_location_is_right_behind_a_proxy(app: str, start: str, routes: str) -> None:
    """`uvicorn --root-path`: clients see the prefix that the proxy takes off."""
    with serve("tests.support.apps.placed:" + app, args=["--factory", "--root-path", "/proxy"]) as server:
        await leads_back(server.port, start, routes, "/proxy")


async def test_content_location_is_followed_by_a_url_library() -> None:
    """httpx resolves it against the URL that it has requested."""
    with serve("tests.support.apps.placed:twice_mounted", args=["--factory"]) as server:
        async with httpx.AsyncClient(timeout=60) as client:
            url = f"{server.url}/top/sub/deep/er/chat"
            first = await client.post(url, headers={"x-conversation-id": "a/b"})
            again = await client.get(first.url.join(first.headers["content-location"]))
            assert (again.status_code, again.content) == (200, first.content)


async def test_dependencies_of_the_router_guard_every_route() -> None:
    """Without the token: 401 from replay, head, stop and lookup, and nothing is stopped; with it, all work."""
    token = [("authorization", "Bearer secret")]
    lookup = b'{"conversation_ids": ["a"]}'
    with serve("tests.support.apps.placed:guarded", args=["--factory"]) as server:
        first = await fetch(server.port, "POST", "/chat", [("x-conversation-id", "a")], b"")
        assert first.status == 200
        for method, target, body in (
            ("GET", "/v1/stream/a", None),
            ("GET", "/v1/stream?conv_id=a", None),
            ("GET", "/v1/stream", None),
            ("HEAD", "/v1/stream/a", None),
            ("HEAD", "/v1/stream?conv_id=a", None),
            ("DELETE", "/v1/stream/a", None),
            ("DELETE", "/v1/stream?conv_id=a", None),
            ("POST", "/v1/streams/lookup", lookup),
            ("POST", "/v1/streams/lookup", b"nonsense"),
        ):
            assert (await fetch(server.port, method, target, [], body)).status == 401, (method, target)
        assert (await fetch(server.port, "GET", "/v1/stream/a", token)).body == first.body
        json = [("content-type", "application/json"), *token]
        assert (await fetch(server.port, "POST", "/v1/streams/lookup", json, lookup)).status == 200
        assert (await fetch(server.port, "DELETE", "/v1/stream/a", token)).status == 204
