"""What a stream id may be, how it is written, and that the way back to its stream is right."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from urllib.parse import quote, urljoin, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.apps.player import Player, forever, send, unique
from tests.support.rawhttp import Reply
from tests.support.server import Server, serve

ODD = [
    "plain",
    "a/b/c",
    "/leading",
    "trailing/",
    "//",
    "a//b",
    "a::b",
    "::",
    "model::org/model:7b",
    ".",
    "..",
    "../..",
    "a/../b",
    "a/./b",
    "a b",
    "a+b",
    "a%2Fb",
    "100%",
    "%",
    "%00",
    "%zz",
    "a?b=c",
    "a#b",
    "a&b=c",
    "a;b",
    "a=b",
    "a,b",
    'a"b',
    "a'b",
    "a\\b",
    "<a>",
    "{a}",
    "[a]",
    "a|b",
    "a^b`",
    "~a",
    "a@b:8080",
    "http://example.org/a",
    "é",
    "e\u0301",
    "日本語",
    "🐍",
    "\u202eabc",
    "x" * 512,
    "é" * 256,
    "lookup",
    "from=5",
    "conv_id",
]


@pytest.fixture(scope="module", params=["httptools", "h11"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve("tests.support.apps.scripted:app", http=request.param, options={"ping": 60}) as running:
        yield running


one_parser = pytest.mark.parametrize("server", ["httptools"], indirect=True)


@pytest.fixture
async def player(server: Server) -> AsyncIterator[Player]:
    async with Player(server.port) as opened:
        yield opened


def as_url_client(target: str, location: str) -> str:
    """What a client that follows RFC 3986 requests when it follows `location` from `target`."""
    url = urlsplit(urljoin(f"http://127.0.0.1{target}", location))
    assert url.netloc == "127.0.0.1"
    return url.path + (f"?{url.query}" if url.query else "")


@pytest.mark.parametrize("stream_id", ODD)
async def test_any_id_leads_back_to_its_stream(player: Player, stream_id: str) -> None:
    """By the query, by `Content-Location`, by lookup; the header echoes the id as it was sent."""
    first = await player.record(stream_id, send(f"data: {stream_id[:40]}\n\n".encode()))
    assert first.status == 200
    assert first.header("x-conversation-id") == stream_id
    location = first.header("content-location")
    assert location
    assert location.isascii()
    assert not set(location) & set(' "<>\\^`{|}')
    by_location = await player.fetch("GET", as_url_client("/script", location))
    by_query = await player.replay(stream_id)
    for reply in (by_location, by_query):
        assert (reply.status, reply.body) == (200, first.body)
        assert reply.header("x-conversation-id") == stream_id
        assert reply.header("x-stream-epoch") == first.header("x-stream-epoch")
    assert [item["conversation_id"] for item in await player.lookup(stream_id)] == [stream_id]


@one_parser
@pytest.mark.parametrize("stream_id", ODD)
async def test_any_id_may_be_given_in_the_path(player: Player, stream_id: str) -> None:
    """With every character escaped, and with slashes left as they are."""
    first = await player.record(stream_id, send(b"data: one\n\n"))
    for safe in ("", "/:"):
        reply = await player.fetch("GET", f"/v1/stream/{quote(stream_id, safe=safe)}")
        assert (reply.status, reply.body) == (200, first.body), safe


@one_parser
@pytest.mark.parametrize("stream_id", ODD)
async def test_a_client_of_the_usual_kind_follows_content_location(server: Server, stream_id: str) -> None:
    """httpx resolves it as browsers do."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60, verify=False) as client:
        first = await client.post(
            "/script",
            json={"steps": [["send", b"data: one\n\n".hex()]]},
            headers={"x-conversation-id": stream_id.encode()},
        )
        again = await client.get(urljoin(str(first.url), first.headers["content-location"]))
        assert (again.status_code, again.content) == (200, first.content)


@given(stream_id=st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=40))
async def test_every_printable_text_is_an_id(server: Server, stream_id: str) -> None:
    """Started by header; found by query, by path and by `Content-Location`."""
    async with Player(server.port) as player:
        first = await player.record(stream_id, send(b"data: one\n\n"))
        assert first.status == 200
        location = as_url_client("/script", first.header("content-location") or "")
        for target in (player.target(stream_id), location, f"/v1/stream/{quote(stream_id, safe='')}"):
            reply = await player.fetch("GET", target)
            assert (reply.status, reply.body) == (200, first.body), target


async def test_ids_are_compared_byte_for_byte(player: Player) -> None:
    """Neither case, nor normal form, nor a slash at the end, nor an escape makes two ids one."""
    base = unique("Bytes")
    kinds = ["é", "e\u0301", "E\u0301", "É", "a", "A", "a/", "a//", "%61", "a%2F", "\u212b", "\u00c5", "a\u200b"]
    bodies = {}
    for kind in kinds:
        bodies[kind] = (await player.record(f"{base}{kind}", send(f"data: {kind}\n\n".encode()))).body
    for kind, body in bodies.items():
        assert (await player.replay(f"{base}{kind}")).body == body
        assert (await player.fetch("GET", f"/v1/stream/{quote(base + kind, safe='')}")).body == body
    assert (await player.replay(base)).status == 404
    assert (await player.replay(f"{base}b")).status == 404


async def test_a_slash_at_the_end_is_part_of_the_id(player: Player) -> None:
    """No redirect takes it away."""
    name = unique("slash")
    await player.record(name, send(b"data: one\n\n"))
    assert (await player.fetch("GET", f"/v1/stream/{name}/")).status == 404
    assert (await player.fetch("DELETE", f"/v1/stream/{name}/")).status == 204
    assert (await player.replay(name)).status == 200


def refused(reply: Reply) -> bool:
    return reply.status == 400 and b'"invalid_stream_id"' in reply.body


@pytest.mark.parametrize("long", ["x" * 513, "é" * 257, "a" + "é" * 256, "🐍" * 129, "x" * 4000], ids=len)
async def test_an_id_over_512_bytes_is_refused_everywhere(player: Player, long: str) -> None:
    """Bytes are counted, not characters; the endpoint is not run."""
    name = unique("long")
    assert refused(await player.record(long, send(b"data: one\n\n"), name=name))
    assert f"called:{name}" not in await player.events()
    assert refused(await player.replay(long))
    assert refused(await player.fetch("GET", f"/v1/stream/{quote(long)}"))
    assert refused(await player.stop(long))
    assert (await player.head(long)).status == 400


@pytest.mark.parametrize("control", ["%00", "%01", "%09", "%0A", "%0D", "%1F", "%7F", "%C2%85"])
async def test_an_id_with_control_characters_is_refused(player: Player, control: str) -> None:
    """In the path and in the query, by every method."""
    for target in (f"/v1/stream/a{control}b", f"/v1/stream?conv_id=a{control}b"):
        assert refused(await player.fetch("GET", target)), target
        assert refused(await player.fetch("DELETE", target)), target
        assert (await player.fetch("HEAD", target)).status == 400, target


async def test_a_header_with_a_control_character_is_refused(player: Player) -> None:
    """A tab is what HTTP lets through."""
    name = unique("tab")
    assert refused(await player.record(b"a\tb", send(b"data: one\n\n"), name=name))
    assert f"called:{name}" not in await player.events()


@pytest.mark.parametrize("value", [b"\xff\xfe", b"caf\xe9", b"\xed\xa0\x80", b"\xc0\x80"])
async def test_a_header_that_is_no_utf8_is_no_accident(player: Player, value: bytes) -> None:
    """It is refused, or it leads back to its stream; it is never an internal error."""
    reply = await player.record(value, send(b"data: one\n\n"))
    assert refused(reply) or (reply.status == 200 and reply.header("content-location"))
    if reply.status == 200:
        target = as_url_client("/script", reply.header("content-location") or "")
        assert (await player.fetch("GET", target)).body == reply.body


@pytest.mark.parametrize("target", ["/v1/stream/%FF%FE", "/v1/stream?conv_id=%FF%FE", "/v1/stream/%ED%A0%80"])
async def test_an_escape_that_is_no_utf8_is_no_accident(player: Player, target: str) -> None:
    """There is no such stream."""
    assert (await player.fetch("GET", target)).status in {400, 404}
    assert (await player.fetch("DELETE", target)).status in {204, 400}


@pytest.mark.parametrize("blank", [b"", b" ", b"  \t "])
async def test_an_empty_id_is_no_id(player: Player, blank: bytes) -> None:
    """The endpoint behaves as if we were not there."""
    reply = await player.record(blank, send(b"data: one\n\n"))
    assert (reply.status, reply.body) == (200, b"data: one\n\n")
    for header in ("x-conversation-id", "x-stream-epoch", "content-location"):
        assert reply.header(header) is None


async def test_a_header_is_utf8(player: Player) -> None:
    """The bytes that were sent come back, and name the same stream in a URL."""
    name = unique("þú-🐍")
    reply = await player.record(name.encode(), send(b"data: one\n\n"))
    raw = reply.header("x-conversation-id")
    assert raw == name
    assert (await player.replay(name)).body == reply.body


async def test_spaces_around_a_header_are_no_part_of_it(player: Player) -> None:
    """Some servers leave them at the end of a value: it means the same there as behind those that do not."""
    name = unique("spaced")
    reply = await player.record(f" {name} \t", send(b"data: one\n\ndata: two\n\n"))
    assert reply.header("x-conversation-id") == name
    whole = await player.replay(name)
    assert whole.body == reply.body
    event_id = f"{reply.header('x-stream-epoch')}-0"
    assert (await player.replay(name, headers=[("Last-Event-ID", f"{event_id} ")])).body == whole.body


async def test_the_id_in_the_path_and_in_the_query_stop_the_same_stream(player: Player) -> None:
    """DELETE takes both forms, with slashes and all."""
    for target in ("/v1/stream/{}", "/v1/stream?conv_id={}"):
        name = unique("org/model::stop")
        live = await player.post(name, send(b"data: one\n\n"), forever(), name=name)
        await live.read_until(b"\n\n")
        assert (await player.fetch("DELETE", target.format(quote(name)))).status == 204
        assert b"event: cancelled" in await live.read_all()
        await player.events(until=f"ended:{name}")


async def test_ids_of_many_streams_do_not_meet(player: Player) -> None:
    """Fifty streams at once, each with its own bytes."""
    names = [unique("many") for _ in range(50)]
    replies = await asyncio.gather(*(player.record(name, send(f"data: {name}\n\n".encode())) for name in names))
    for name, reply in zip(names, replies, strict=True):
        assert reply.body.startswith(f"data: {name}\n".encode())
        assert (await player.replay(name)).body == reply.body
