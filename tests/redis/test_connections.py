"""The ways to reach a Redis: TLS, a user with few rights, a client of the application's own, a Cluster.

Two applications in this process, each with a store of its own, take the place of two workers.
"""

import asyncio
import re
import shlex
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import ValidationError
from redis.asyncio import Redis

from fastapi_resumable import RedisStore, Resumable
from fastapi_resumable.exceptions import StoreUnavailable
from fastapi_resumable.settings import ResumableSettings
from tests.support.apps.player import forever, script_body, send, wait
from tests.support.apps.shared import create_app
from tests.support.asgi import Client, Exchange, running
from tests.support.redis_server import RedisServer, cluster_of
from tests.support.server import ROOT
from tests.support.site import code_of
from tests.support.ssemodel import without_ids

pytestmark = pytest.mark.redis


@asynccontextmanager
async def two_workers(url: str, **site: Any) -> AsyncIterator[tuple[Client, Client]]:
    """Two applications on one Redis."""
    apps = [create_app({"url": url, **site}) for _ in range(2)]
    async with running(apps[0]) as one, running(apps[1]) as other:
        yield one, other


def begin(client: Client, name: str, *steps: Any) -> Exchange:
    """Start a script."""
    headers = {"x-conversation-id": name, "content-type": "application/json"}
    return client.start("POST", "/script", headers=headers, body=script_body(*steps, name=name))


async def exercise(one: Client, other: Client) -> None:
    """All that a store does, once: begin, follow, look up, stop, expire, refuse."""
    live = begin(one, "a b/ü", send(b"data: 1\n\n"), wait("go"), send(b"data: 2\n\n"))
    await live.read_until(b"\n\n")
    reader = other.start("GET", "/v1/stream?conv_id=a%20b/%C3%BC")
    await reader.read_until(b"\n\n")
    assert [item["status"] for item in await look_up(other, "a b/ü")] == ["in_progress"]
    assert (await one.post("/gate/go")).status == 204
    rest = await live.rest()
    assert await reader.rest() == rest
    assert b"data: 2" in rest
    assert live.clean and reader.clean
    replay = await other.get("/v1/stream?conv_id=a%20b/%C3%BC")
    assert without_ids(replay.body) == b"data: 1\n\ndata: 2\n\n"
    assert [item["status"] for item in await look_up(other, "a b/ü")] == ["completed"]
    stopped = begin(one, "stopped", send(b"data: 1\n\n"), forever())
    await stopped.read_until(b"\n\n")
    assert (await other.delete("/v1/stream/stopped")).status == 204
    assert code_of(await stopped.rest()) == "cancelled"
    assert (await other.get("/v1/stream/stopped")).status == 404
    replaced = begin(one, "again", send(b"data: 1\n\n"), forever())
    await replaced.read_until(b"\n\n")
    newer = begin(other, "again", send(b"data: 2\n\n"))
    assert without_ids(await newer.rest()) == b"data: 2\n\n"
    assert code_of(await replaced.rest()) == "replaced"
    assert (await one.get("/v1/stream/unknown")).status == 404


async def look_up(client: Client, *names: str) -> list[dict[str, Any]]:
    """Look streams up."""
    reply = await client.post("/v1/streams/lookup", json={"conversation_ids": names})
    items: list[dict[str, Any]] = reply.json()
    return items


async def test_an_address(redis_server: RedisServer) -> None:
    """`redis://`: what the other ways are measured by."""
    async with two_workers(redis_server.url, key_prefix="address") as apps:
        await exercise(*apps)


async def test_another_database(redis_server: RedisServer) -> None:
    """The database of the URL is used, and no other."""
    url = redis_server.url.removesuffix("0") + "7"
    async with two_workers(url, key_prefix="seventh") as apps:
        await exercise(*apps)
        assert redis_server.list_keys("seventh*") == []


async def test_tls(own_redis: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    """`rediss://` with an authority of one's own; a server that it does not vouch for is refused."""
    with own_redis(tls=True) as redis:
        async with two_workers(redis.url) as apps:
            await exercise(*apps)
        unknown = redis.url.partition("?")[0]
        store = {"store_timeout": 3.0, "on_store_failure": "fail"}
        # On a busy machine a handshake may take too long, and the log gives the first reason of an outage.
        while "certificate" not in caplog.text.lower():
            async with two_workers(unknown, store=store) as apps:
                refused = await begin(apps[0], "a", send(b"data: 1\n\n")).reply()
                assert (refused.status, refused.code) == (503, "store_unavailable")
                assert "certificate" not in refused.text.lower()


async def test_a_user_with_no_more_rights_than_documented(own_redis: Callable[..., Any]) -> None:
    """The commands and the key pattern of the page are enough, and the server has refused none but what it says."""
    page = (ROOT / "docs/how-to/redis-operations.md").read_text()
    [rights] = re.findall(r"\$ redis-cli acl setuser (.*?)\nOK", page, re.DOTALL)
    with own_redis() as redis:
        redis.control.execute_command("ACL SETUSER", *shlex.split(rights.replace("\\\n", "")))
        redis.control.execute_command("ACL SETUSER", "default", "resetpass", ">other")
        url = redis.url_at(redis.port, "streams:secret@")
        async with two_workers(url, key_prefix="fastapi-resumable") as apps:
            await exercise(*apps)
        of_redis_py = {"client"} if redis.control.info("server")["redis_version"].startswith("6.2") else set()
        assert {refusal["object"] for refusal in redis.control.acl_log()} == of_redis_py
        assert {key.partition(":")[0] for key in redis.list_keys()} == {"fastapi-resumable"}


OF_REDIS = r"(?i)redis|127|sock|nobody|invalid|permission|evalsha|password|connect|index|slot|type|loading|read"


async def test_what_is_wrong_with_redis_goes_to_the_log_and_not_to_clients(
    own_redis: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Under `fail`: no address, no user, no command, whether Redis refuses the user or cannot be reached."""
    with own_redis() as redis, own_redis(name="cluster", cluster=True) as cluster:
        redis.control.execute_command("ACL SETUSER", "nobody", "on", ">secret", "~*", "+ping")
        redis.control.execute_command("ACL SETUSER", "other", "on", ">secret", "~other:*", "+@all")
        redis.control.set("mistyped:{/a}", "no hash")
        cases = [
            (redis.url_at(redis.port, "nobody:secret@"), "permissions"),
            (redis.url_at(redis.port, "other:secret@"), "permissions"),
            (redis.url_at(redis.port, "nobody:guessed@"), "password"),
            (redis.url.removesuffix("0") + "99", "DB index"),
            (redis.url, "wrong kind of value"),
            (cluster.url, "slot"),
            (redis.url.replace("redis:", "rediss:"), "127.0.0.1|does not answer"),
            ("redis://127.0.0.1:1/0", "127.0.0.1:1"),
            ("redis://nobody:secret@redis.invalid/0", "redis.invalid|does not answer"),
            ("unix://nobody:secret@/tmp/no/redis.sock", "redis.sock"),
        ]
        # On a busy machine, half a second is not enough for Redis to say what is wrong.
        for (url, cause), timeout in product(cases, (0.5, 20.0)):
            if timeout > 1 and re.search(cause, caplog.text):
                continue
            caplog.clear()
            store = {"store_timeout": timeout, "on_store_failure": "fail"}
            async with two_workers(url, key_prefix="mistyped", store=store) as (app, _):
                answers = [
                    await begin(app, "a", send(b"data: 1\n\n")).reply(),
                    await app.get("/v1/stream/a"),
                    await app.delete("/v1/stream/a"),
                    await app.post("/v1/streams/lookup", json={"conversation_ids": ["a"]}),
                ]
            for answer in answers:
                assert (answer.status, answer.code) == (503, "store_unavailable"), cause
                assert not re.search(OF_REDIS, answer.text)
            assert timeout < 1 or re.search(cause, caplog.text)
            assert "secret" not in caplog.text and "guessed" not in caplog.text


async def test_a_password_that_redis_quotes_is_not_logged(
    own_redis: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """It quotes the words of a command that it does not know, which AUTH is on some services."""
    with own_redis("--rename-command AUTH OTHER") as redis:
        store = RedisStore(redis.url_at(redis.port, "nobody:s3cret@"))
        with pytest.raises(StoreUnavailable) as caught:
            await store.lookup(None, ["chat"])
        await store.aclose()
    told = "".join(traceback.format_exception(caught.value))
    for text in (caplog.text, told):  # Redis 6.2 has other quotation marks
        assert re.search(r"unknown command ['`]AUTH['`]", text)
    assert "s3cret" not in caplog.text and "s3cret" not in told


@pytest.mark.parametrize("options", ["", "?protocol=3", "?socket_timeout=6"])
async def test_a_client_of_the_applications_own(redis_server: RedisServer, options: str) -> None:
    """A `redis.asyncio.Redis` in place of the address."""
    async with two_workers(redis_server.url + options, client="redis", key_prefix=f"own-{options[1:4]}") as apps:
        await exercise(*apps)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"decode_responses": True}, "decode_responses"),
        # A blocking read takes it, so every other call would have to wait until it counts as lost.
        ({"single_connection_client": True}, "single_connection_client"),
        ({"max_connections": 1}, "max_connections"),
    ],
)
def test_a_client_that_cannot_work_is_refused(option: dict[str, Any], named: str) -> None:
    """With a sentence that says what to leave out."""
    with pytest.raises(ValueError, match=named):
        RedisStore(Redis(**option))


async def test_a_client_of_the_applications_own_stays_open(redis_server: RedisServer) -> None:
    """Who made it closes it."""
    client = Redis.from_url(redis_server.url)
    try:
        store = RedisStore(client, key_prefix="open")
        Resumable(store=store)
        await store.aclose()
        assert await client.ping()
    finally:
        await client.aclose()


async def test_a_cluster(tmp_path: Path) -> None:
    """A `RedisCluster` of the application's own: each key at its node, and no command touches the keys of two slots."""
    names = [f"s{number}" for number in range(20)]
    with cluster_of(3, tmp_path) as nodes:
        async with two_workers(nodes[0].url, client="cluster") as apps:
            await exercise(*apps)
            await asyncio.gather(
                *(begin(apps[number % 2], name, send(b"data: 1\n\n")).rest() for number, name in enumerate(names))
            )
            assert len(await look_up(apps[1], *names)) == 20
        assert all(node.list_keys() and not node.list_keys_without_expiry() for node in nodes)


@pytest.mark.skipif(
    int(redis.__version__.partition(".")[0]) < 8, reason="redis-py before 8.0 may forget all nodes when one fails"
)
async def test_a_cluster_of_which_a_node_comes_back_empty(tmp_path: Path) -> None:
    """No byte is lost, and no worker taken for dead, although nothing of its streams and leases is left."""
    names = [f"s{number}" for number in range(12)]
    with cluster_of(3, tmp_path) as nodes:
        async with two_workers(nodes[0].url, client="cluster", store={"store_timeout": 60.0}) as apps:
            live = [begin(apps[0], name, send(b"data: 1\n\n"), wait("go"), send(b"data: 2\n\n")) for name in names]
            for exchange in live:
                await exchange.read_until(b"\n\n")
            readers = [apps[1].start("GET", f"/v1/stream/{name}") for name in names]
            for exchange in readers:
                await exchange.read_until(b"\n\n")
            await asyncio.to_thread(nodes[2].kill)
            assert (await apps[0].post("/gate/go")).status == 204
            await asyncio.to_thread(nodes[2].start)
            for exchange in (*live, *readers):
                assert b"data: 2" in await exchange.rest()
                assert exchange.clean
            statuses = [item["status"] for item in await look_up(apps[1], *names)]
        assert statuses == ["completed"] * 12


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("http://127.0.0.1",), "redis://"),
        (("127.0.0.1:6379",), "redis://"),
        ((42,), "redis"),
    ],
)
def test_a_wrong_address_is_named(arguments: tuple[Any, ...], named: str) -> None:
    """At construction, with a sentence that says what to give."""
    with pytest.raises((ValueError, TypeError), match=named):
        RedisStore(*arguments)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:s3cret@127.0.0.1",
        "redis://user:s3cret@127.0.0.1:port/0",
        "redis://user:s3/cret@127.0.0.1",
        "redis://:s3cret@127.0.0.1/0?socket_timeout=often",
        "redis://127.0.0.1/0?password=s3cret&health_check_interval=often",
    ],
)
def test_a_wrong_address_is_named_without_its_password(url: str) -> None:
    """Errors at construction end up in logs and error trackers."""
    with pytest.raises(ValueError, match="redis://") as caught:
        RedisStore(url)
    for error in (caught.value, caught.value.__cause__):
        assert "s3" not in str(error) and "cret" not in str(error)
    assert "s3cret" not in repr(RedisStore("redis://user:s3cret@127.0.0.1"))


@pytest.mark.parametrize(
    "url",
    [
        "reddis://user:s3cret@127.0.0.1",
        "http://user:s3cret@127.0.0.1",
        "user:s3cret@127.0.0.1:6379",
        "redis:/user:s3cret@127.0.0.1",
        "rediss//127.0.0.1?password=s3cret",
        "redis://user:s3cret@127.0.0.1:port/0",
    ],
)
def test_a_setting_is_named_without_its_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In code, and in the environment."""
    with pytest.raises(ValueError, match="redis://") as in_code:
        Resumable(store=url)
    monkeypatch.setenv("FASTAPI_RESUMABLE_STORE", url)
    with pytest.raises(ValueError, match="redis://") as in_environment:
        Resumable()
    assert "s3cret" not in f"{in_code.value!r} {in_environment.value!r}"


def test_settings_are_shown_without_the_store() -> None:
    """What shows them may be a log, or a page of errors."""
    url = "redis://user:s3cret@127.0.0.1"
    assert "s3cret" not in repr(ResumableSettings(store=url)) + repr(Resumable(store=url).settings)
    with pytest.raises(ValidationError) as caught:
        ResumableSettings(store="reddis://user:s3cret@127.0.0.1")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"lease": 0}, {"lease": -1.0}, {"store_timeout": 0}, {"on_store_failure": "ignore"}, {"key_prefix": ""}],
)
def test_a_wrong_setting_is_named(options: dict[str, Any]) -> None:
    """At construction, by its name."""
    with pytest.raises(ValueError, match=next(iter(options))):
        RedisStore("redis://127.0.0.1", **options)
