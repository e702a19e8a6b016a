"""What else the record holds: any media type, the status, the end-to-end headers."""

import gzip
import json
import re
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.apps.player import Player, numbered, send, sends, unique, wait
from tests.support.rawhttp import Reply
from tests.support.server import Server, serve
from tests.support.ssemodel import payloads

HOP_BY_HOP = [
    ("connection", "x-hop, close"),
    ("x-hop", "1"),
    ("keep-alive", "timeout=5"),
    ("proxy-authenticate", "Basic"),
    ("te", "trailers"),
    ("trailer", "x-checksum"),
    ("upgrade", "h2c"),
]
OF_ONE_ANSWER = [
    ("set-cookie", "session=1"),
    ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
    ("server", "app"),
    ("vary", "origin"),
    ("access-control-allow-origin", "https://app.example"),
    ("access-control-allow-credentials", "true"),
    ("access-control-expose-headers", "x-a"),
    ("x-request-id", "abc"),
    ("x-correlation-id", "abc"),
    ("server-timing", "db;dur=53"),
    ("traceresponse", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("x-ratelimit-remaining", "7"),
    ("ratelimit", '"default";r=50;t=30'),
    ("www-authenticate", "Bearer"),
    ("clear-site-data", '"cache"'),
    ("accept-ranges", "bytes"),
    ("cdn-cache-control", "max-age=600"),
    ("surrogate-key", "chat"),
]
END_TO_END = [
    ("x-vercel-ai-ui-message-stream", "v1"),
    ("link", "</a>; rel=next"),
    ("link", "</b>; rel=prev"),
    ("content-disposition", 'attachment; filename="a.csv"'),
    ("content-language", "is"),
]


@pytest.fixture(scope="module", params=["httptools", "h11"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve("tests.support.apps.scripted:app", http=request.param, options={"ping": 60}) as running:
        yield running


@pytest.fixture
async def player(server: Server) -> AsyncIterator[Player]:
    async with Player(server.port) as opened:
        yield opened


@pytest.mark.parametrize(
    ("media_type", "chunks"),
    [
        ("application/x-ndjson", [b'{"a":', b"1}\n", b'{"b":2}\n']),
        ("application/jsonl", [b'{"a":1}\n', b"\n\n", b'{"half":']),
        ("text/plain; charset=utf-8", ["þetta ".encode(), "é".encode()[:1], b"r\r\n\r\n"]),
        ("application/octet-stream", [bytes(range(256)), b"\0\r\n\n\n", b"\xff"]),
        ("audio/mpeg", [b"\xff\xfb\x90\x00" * 40, b"id: 1\n\n", b"data: x\n\n"]),
        ("text/event-stream-like", [b"data: x\n\n"]),
    ],
)
async def test_any_other_media_type_is_recorded_as_it_comes(
    player: Player, media_type: str, chunks: list[bytes]
) -> None:
    """No framing, no ids, no keep-alive: the bytes, and a resume at any of them."""
    name = unique("media")
    whole = b"".join(chunks)
    first = await player.record(name, *sends(*chunks), media_type=media_type)
    assert first.body == whole
    assert first.clean
    assert first.header("content-type") == (await player.replay(name)).header("content-type")
    assert (first.header("content-type") or "").startswith(media_type)
    for cut in range(len(whole) + 1):
        rest = await player.replay(name, from_=cut)
        assert (rest.status, rest.body, rest.clean) == (200, whole[cut:], True)


async def test_an_event_stream_is_known_by_its_media_type_alone(player: Player) -> None:
    """Parameters and upper case do not make it something else."""
    for media_type in ("text/event-stream;charset=utf-8", "Text/Event-Stream", "text/event-stream ; x=y"):
        reply = await player.record(unique("type"), send(b"data: one\n\n"), media_type=media_type)
        assert re.fullmatch(rb"data: one\nid: [a-z2-7]{16}-\d+\n\n", reply.body)


async def test_bytes_that_are_no_events_are_shown_as_they_come(player: Player) -> None:
    """Outside event streams nothing is held back for a line to end."""
    name = unique("soon")
    live = await player.post(name, send(b'{"a":'), wait(name), send(b"1}\n"), media_type="application/x-ndjson")
    assert await live.read(5) == b'{"a":'
    late = await player.follow(name, from_=2)
    assert await late.read(3) == b'a":'
    await player.open(name)
    assert await live.read_all() == await late.read_all() == b"1}\n"


def kept(reply: Reply) -> list[tuple[str, str]]:
    """The headers that are not ours and not the server's."""
    return sorted(pair for pair in reply.headers if pair in END_TO_END)


async def test_end_to_end_headers_are_recorded_and_others_are_not(player: Player) -> None:
    """A replay has the application's own headers, without those that belonged to one connection or one client."""
    name = unique("head")
    await player.prepare(
        name, send(b"data: one\n\n"), wait(name), send(b"data: two\n\n"), headers=[*END_TO_END, *OF_ONE_ANSWER]
    )
    first = await player.open_request("GET", f"/play/{name}", [("x-conversation-id", name)])
    await first.read_until(b"\n\n")
    live = await player.follow(name)
    await player.open(name)
    await first.read_all()
    await live.read_all()
    finished = await player.replay(name)
    resumed = await player.replay(name, from_=5)
    for reply in (live, finished, resumed, await player.head(name)):
        assert kept(reply) == sorted(END_TO_END)
        assert (reply.header("content-type") or "").startswith("text/event-stream")
        assert "session=1" not in reply.values("set-cookie")
        assert "Thu, 01 Jan 1970 00:00:00 GMT" not in reply.values("date")
        assert "app" not in reply.values("server")
        assert not reply.values("vary")
        assert not [key for key, _ in reply.headers if key.startswith("access-control-")]
        assert not {key for key, _ in OF_ONE_ANSWER[7:]} & {key for key, _ in reply.headers}
        assert reply.values("x-content-type-options") == ["nosniff"]
    assert kept(first) == sorted(END_TO_END)


@pytest.mark.parametrize(
    ("media_type", "policy"), [("Text/HTML", "sandbox"), ("image/svg+xml", "sandbox"), ("text/plain", None)]
)
async def test_a_replay_of_html_runs_no_scripts(player: Player, media_type: str, policy: str | None) -> None:
    """It has a URL of its own, on the application's origin, which a browser could be led to."""
    name = unique("html")
    first = await player.record(name, send(b"<script>alert(1)</script>"), media_type=media_type)
    assert first.header("content-security-policy") is None
    for reply in (await player.replay(name), await player.head(name)):
        assert reply.header("content-security-policy") == policy
        assert reply.header("x-content-type-options") == "nosniff"


async def test_hop_by_hop_headers_are_never_replayed(player: Player) -> None:
    """Neither the known ones nor those that `Connection` names."""
    name = unique("hops")
    await player.prepare(name, send(b"data: one\n\n"), headers=[*HOP_BY_HOP, ("x-stays", "1")])
    await player.fetch("GET", f"/play/{name}", [("x-conversation-id", name)])
    replay = await player.replay(name)
    assert replay.status == 200
    assert replay.header("x-stays") == "1"
    for key, value in HOP_BY_HOP:
        assert value not in replay.values(key), key
    assert payloads(replay.body) == ["one"]


async def test_what_we_set_ourselves_replaces_and_never_doubles(player: Player) -> None:
    """An application that sets the same headers, in any case, leaves one of each: ours."""
    name = unique("double")
    ours = {"cache-control": "no-store, no-transform", "x-accel-buffering": "no", "x-conversation-id": name}
    theirs = [
        ("Cache-Control", "no-cache"),
        ("cache-control", "max-age=60"),
        ("X-Accel-Buffering", "yes"),
        ("X-Conversation-Id", "another"),
        ("X-Stream-Epoch", "zzz"),
        ("Content-Location", "/elsewhere"),
    ]
    await player.prepare(name, send(b"data: one\n\n"), headers=theirs)
    first = await player.fetch("GET", f"/play/{name}", [("x-conversation-id", name)])
    for reply in (first, await player.replay(name), await player.head(name)):
        for key, value in ours.items():
            assert reply.values(key) == [value]
        assert re.fullmatch("[a-z2-7]{16}", reply.header("x-stream-epoch") or "")
        assert (reply.header("content-location") or "").startswith("/v1/stream")
        assert len(reply.values("content-type")) == 1


@pytest.mark.parametrize("status", [200, 201, 206, 226])
async def test_the_status_is_part_of_the_record(player: Player, status: int) -> None:
    """A replay of a 201 is a 201."""
    name = unique("status")
    first = await player.record(name, send(b"data: one\n\n"), status=status)
    replay = await player.replay(name)
    assert first.status == status
    assert replay.status == status
    assert replay.body == first.body


async def test_an_answer_that_is_no_stream_is_recorded_like_any_other(player: Player) -> None:
    """Plain JSON under a stream id can be read again, whole or from a byte, with a length that is true."""
    name = unique("json")
    content = {"answer": "já", "list": [1, 2, 3]}
    first = await player.record(name, content=content)
    assert first.clean
    assert json.loads(first.body) == content
    replay = await player.replay(name)
    assert (replay.body, replay.clean, replay.header("content-type")) == (first.body, True, "application/json")
    rest = await player.replay(name, from_=5)
    assert (rest.body, rest.clean) == (first.body[5:], True)
    assert rest.header("content-length") in {None, str(len(rest.body))}
    (item,) = await player.lookup(name)
    assert (item["is_done"], item["total_bytes"], item["content_type"]) == (True, len(first.body), "application/json")


async def test_an_answer_without_a_body_is_recorded_too(player: Player) -> None:
    """Nothing is something: a stream of no bytes that has ended."""
    name = unique("empty")
    first = await player.record(name)
    assert (first.status, first.body, first.clean) == (200, b"", True)
    replay = await player.replay(name)
    assert (replay.status, replay.body, replay.clean) == (200, b"", True)
    assert (await player.lookup(name))[0]["is_done"] is True


@pytest.fixture(scope="module", params=["inside", "outside"])
def compressed(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve(f"tests.support.apps.compressed:{request.param}", options={"ping": 60}) as running:
        yield running


@pytest.mark.parametrize("media_type", ["application/x-ndjson", "text/event-stream", "text/plain"])
async def test_a_compressing_middleware_does_not_reach_the_log(compressed: Server, media_type: str) -> None:
    """A client that asked for gzip and one that did not read the same bytes, with headers that are true."""
    accept = [("accept-encoding", "gzip")]
    async with Player(compressed.port) as player:
        name = unique("gzip")
        live = await player.post(name, numbered(20, 100), media_type=media_type, headers=accept)
        await live.read_all()
        plain = await player.replay(name)
        asked = await player.replay(name, headers=accept)
        assert live.clean
        assert plain.header("content-encoding") is None
        assert plain.clean
        assert plain.body.count(b"data: 000000") == 20
        for reply in (live, asked):
            zipped = reply.header("content-encoding") == "gzip"
            assert (gzip.decompress(reply.body) if zipped else reply.body) == plain.body
        (item,) = await player.lookup(name)
        assert item["total_bytes"] == len(plain.body)
        assert (await player.replay(name, from_=50)).body == plain.body[50:]


async def test_a_length_that_a_middleware_has_set_is_not_replayed(compressed: Server) -> None:
    """A whole JSON answer, compressed on its way out for one client, is read in full by the next."""
    async with Player(compressed.port) as player:
        name = unique("length")
        content = {"text": "long " * 200}
        first = await player.record(name, content=content, headers=[("accept-encoding", "gzip")])
        zipped = first.header("content-encoding") == "gzip"
        assert json.loads(gzip.decompress(first.body) if zipped else first.body) == content
        replay = await player.replay(name)
        assert replay.header("content-encoding") is None
        assert json.loads(replay.body) == content
        assert replay.clean
