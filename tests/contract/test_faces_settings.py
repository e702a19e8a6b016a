"""What `Resumable(...)` takes, from code and from the environment, and how a request names its stream and owner."""

import inspect
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request
from pydantic import BaseModel

import fastapi_resumable
from fastapi_resumable import Resumable, ResumableError, body_field, header
from tests.support.asgi import data_of, running
from tests.support.life_apps import ID, Stage, answer, app_under, make, stage

KEYWORDS = (
    "store",
    "prefix",
    "stream_id",
    "owner",
    "on_conflict",
    "event_ids",
    "ping",
    "max_stream_bytes",
    "retention",
    "max_total_bytes",
    "max_streams",
    "max_streams_per_owner",
    "head_timeout",
    "pending_timeout",
    "stall_timeout",
    "stop_grace",
    "shutdown_grace",
    "auto_id",
    "terminal_event",
)

WRONG: list[tuple[str, Any]] = [
    ("store", object()),
    ("prefix", "v1"),
    ("prefix", "/v1/"),
    ("prefix", 1),
    ("stream_id", "X-My-Id"),
    ("owner", "X-User"),
    ("on_conflict", "keep"),
    ("on_conflict", None),
    ("event_ids", "perhaps"),
    ("ping", -1.0),
    ("ping", "often"),
    ("ping", float("nan")),
    ("max_stream_bytes", 0),
    ("max_stream_bytes", -1),
    ("max_stream_bytes", "4 MiB"),
    ("retention", -1.0),
    ("retention", float("nan")),
    ("retention", "long"),
    ("max_total_bytes", 0),
    ("max_streams", 0),
    ("max_streams", -3),
    ("max_streams_per_owner", 0),
    ("head_timeout", -1.0),
    ("head_timeout", "soon"),
    ("pending_timeout", -1.0),
    ("stall_timeout", 0),
    ("stall_timeout", -1.0),
    ("stop_grace", -1.0),
    ("shutdown_grace", -1.0),
    ("shutdown_grace", float("nan")),
    ("auto_id", "perhaps"),
    ("terminal_event", "smoke-signals"),
    ("terminal_event", 7),
]


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_every_setting_is_a_keyword_with_a_working_default(keyword: str) -> None:
    """`Resumable()` works, and each setting has a name and a default."""
    Resumable()
    parameter = inspect.signature(Resumable).parameters[keyword]
    assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
    assert parameter.default is not inspect.Parameter.empty


def test_settings_are_keywords_only() -> None:
    """A positional argument is refused."""
    with pytest.raises(TypeError):
        Resumable("/v1")  # type: ignore[misc]


def test_an_unknown_setting_is_refused_by_name() -> None:
    """A typo does not pass in silence."""
    with pytest.raises(TypeError, match="retension"):
        Resumable(retension=5)  # type: ignore[call-arg]


@pytest.mark.parametrize(("keyword", "value"), WRONG)
def test_a_wrong_value_fails_at_construction_with_a_sentence(keyword: str, value: Any) -> None:
    """The error names the setting and says, in words, what to do."""
    with pytest.raises((ValueError, TypeError, ResumableError)) as caught:
        Resumable(**{keyword: value})
    sentence = str(caught.value)
    assert keyword in sentence
    assert len(sentence.split()) >= 6


@pytest.mark.parametrize(("keyword", "value"), [(k, v) for k, v in WRONG if isinstance(v, (int, float, str))])
def test_a_wrong_value_in_the_environment_fails_at_construction_too(
    keyword: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator's mistake is told by the name of the variable or of the setting."""
    if keyword in ("store", "stream_id", "owner") or (keyword, value) == ("prefix", 1):
        return  # not settable from the environment: code, not text
    monkeypatch.setenv(f"FASTAPI_RESUMABLE_{keyword.upper()}", str(value))
    with pytest.raises((ValueError, TypeError, ResumableError)) as caught:
        Resumable()
    assert keyword in str(caught.value).lower()


def _paths(resumable: Resumable) -> set[str]:
    app = FastAPI()
    app.include_router(resumable.router)
    return set(app.openapi()["paths"])


def test_the_environment_sets_what_code_leaves_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """`FASTAPI_RESUMABLE_PREFIX` moves the routes."""
    assert any(path.startswith("/v1/stream") for path in _paths(Resumable()))
    monkeypatch.setenv("FASTAPI_RESUMABLE_PREFIX", "/again")
    assert all(path.startswith("/again/") for path in _paths(Resumable()))


def test_code_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A keyword that is given is not overridden from outside."""
    monkeypatch.setenv("FASTAPI_RESUMABLE_PREFIX", "/again")
    assert all(path.startswith("/mine/") for path in _paths(Resumable(prefix="/mine")))


async def test_behaviour_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only the prefix: the rule of conflict and the ids, for two."""
    monkeypatch.setenv("FASTAPI_RESUMABLE_ON_CONFLICT", "reject")
    monkeypatch.setenv("FASTAPI_RESUMABLE_EVENT_IDS", "false")
    made = stage("decorator")
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        second = await made.post(client, "chat-1").reply()
        run.finish()
        body = await exchange.rest()
    assert (second.status, second.code) == (409, "stream_exists")
    assert body == b"data: one\n\n"


def test_an_empty_prefix_is_allowed() -> None:
    """The routes may live at the root, or under whatever `include_router` says."""
    assert any(path.startswith("/stream") for path in _paths(Resumable(prefix="")))


def test_public_models_start_with_resumable() -> None:
    """No schema of the user's is renamed in OpenAPI by ours: every one of ours has the prefix."""
    app = FastAPI()
    app.include_router(Resumable().router)
    theirs = {"HTTPValidationError", "ValidationError"}
    names = set(app.openapi()["components"]["schemas"]) - theirs
    assert names
    assert all(name.startswith("Resumable") for name in names)
    for name in fastapi_resumable.__all__:
        value = getattr(fastapi_resumable, name)
        if inspect.isclass(value) and issubclass(value, BaseModel) and not name.endswith("Settings"):
            assert name.startswith("Resumable")


def test_a_users_own_models_keep_their_names() -> None:
    """A user's `StreamItem`, `Error` and `Lookup` beside ours stay what they are."""

    class StreamItem(BaseModel):
        x: int

    class ErrorDetail(BaseModel):
        y: int

    app = FastAPI()
    app.include_router(Resumable().router)

    @app.post("/mine", response_model=ErrorDetail)
    def mine(item: StreamItem) -> Any:
        return None

    assert {"StreamItem", "ErrorDetail"} <= set(app.openapi()["components"]["schemas"])


def test_the_router_is_documented() -> None:
    """Replay, lookup and stop are in the app's OpenAPI, with their errors."""
    app = FastAPI()
    app.include_router(Resumable().router)
    paths = app.openapi()["paths"]
    by_method = {(method, path) for path, item in paths.items() for method in item}
    assert {method for method, _ in by_method} >= {"get", "delete", "post"}
    assert ("post", "/v1/streams/lookup") in by_method
    for path, item in paths.items():
        for operation in item.values():
            assert operation.get("summary"), path
            assert operation["responses"], path


# -- how a request names its stream -------------------------------------------------------------------------------


def _named_app(face: str, resumable: Resumable, path: str, made: Stage) -> FastAPI:
    """An app whose resumable endpoint sits at ``path``, GET and POST, under one face."""

    async def chat() -> Any:
        return answer(made.new_run(), "async generator")

    return app_under(face, chat, resumable, app=made.app, path=path, methods=("GET", "POST"))


faces = pytest.mark.parametrize("face", ["decorator", "dependency", "route_class", "middleware"])


async def _one_stream(made: Stage, app: FastAPI, method: str, url: str, **options: Any) -> str | None:
    """The id under which a request was recorded, by its response's header; None if it was not."""
    async with running(app) as client:
        exchange = client.start(method, url, **options)
        run = await made.run()
        run.put("one")
        run.finish()
        reply = await exchange.reply()
        assert reply.status == 200
        assert data_of(reply.body) == ["one"]
        return reply.headers.get(ID.lower())


@faces
async def test_the_default_name_is_the_conversation_header(face: str) -> None:
    """`X-Conversation-Id`."""
    made = Stage()
    app = _named_app(face, make(), "/chat", made)
    assert await _one_stream(made, app, "POST", "/chat", headers={ID: "chat-1"}) == "chat-1"


@faces
async def test_another_header_can_name_the_stream(face: str) -> None:
    """`stream_id=header("X-Thread")`."""
    made = Stage()
    app = _named_app(face, make(stream_id=header("X-Thread")), "/chat", made)
    assert await _one_stream(made, app, "POST", "/chat", headers={"X-Thread": "t-1"}) == "t-1"


@faces
async def test_a_field_of_the_json_body_can_name_the_stream(face: str) -> None:
    """`stream_id=body_field("id")`."""
    made = Stage()
    app = _named_app(face, make(stream_id=body_field("id")), "/chat", made)
    assert await _one_stream(made, app, "POST", "/chat", json={"id": "b-1", "messages": []}) == "b-1"


@faces
@pytest.mark.parametrize("body", [b"", b"not json", b"[1]", b'"text"', b"{}", b'{"id": null}', b"\xff\xfe"])
async def test_a_body_without_the_field_names_no_stream(face: str, body: bytes) -> None:
    """Not JSON, not an object, no such field: the endpoint answers as if we were not there."""
    made = Stage()
    app = _named_app(face, make(stream_id=body_field("id")), "/chat", made)
    assert await _one_stream(made, app, "POST", "/chat", body=body) is None


@faces
async def test_the_endpoint_still_reads_the_body_that_named_the_stream(face: str) -> None:
    """A body in several messages is read for its id and is there, whole, for the endpoint."""
    made = Stage()
    seen: list[Any] = []

    class Body(BaseModel):
        id: str
        text: str

    async def chat(body: Body) -> Any:
        seen.append(body.text)
        return answer(made.new_run(), "async generator")

    app = app_under(face, chat, make(stream_id=body_field("id")))
    text = b'{"id": "b-1", "text": "' + b"y" * 50 + b'"}'
    pieces = [text[i : i + 9] for i in range(0, len(text), 9)]
    headers = {"content-type": "application/json"}
    assert await _one_stream(made, app, "POST", "/chat", pieces=pieces, headers=headers) == "b-1"
    assert seen == ["y" * 50]


def from_path(chat_id: str) -> str:
    """The stream's name out of the path."""
    return chat_id


async def from_query(conversation: Annotated[str | None, Query()] = None) -> str | None:
    """The stream's name out of the query."""
    return conversation


@pytest.mark.parametrize("face", ["decorator", "dependency", "route_class"])
async def test_a_path_parameter_can_name_the_stream(face: str) -> None:
    """A plain function with the path's parameter is a dependency like any other."""
    made = Stage()
    app = _named_app(face, make(stream_id=from_path), "/chats/{chat_id}", made)
    assert await _one_stream(made, app, "POST", "/chats/c-7") == "c-7"


@faces
async def test_a_query_parameter_can_name_the_stream(face: str) -> None:
    """So a native `EventSource`, which sends no headers of its own, can name one."""
    made = Stage()
    app = _named_app(face, make(stream_id=from_query), "/chat", made)
    assert await _one_stream(made, app, "GET", "/chat?conversation=q-1") == "q-1"


@faces
async def test_a_dependency_that_returns_none_names_no_stream(face: str) -> None:
    """No name, no recording."""
    made = Stage()
    app = _named_app(face, make(stream_id=from_query), "/chat", made)
    assert await _one_stream(made, app, "GET", "/chat") is None


@faces
async def test_the_naming_dependency_may_have_dependencies_and_yield(face: str) -> None:
    """It is solved by FastAPI: sub-dependencies, `yield` and all."""
    trace: list[str] = []

    async def tenant(x_tenant: Annotated[str, Header()]) -> str:
        return x_tenant

    async def name(tenant: Annotated[str, Depends(tenant)], request: Request) -> Any:
        trace.append("opened")
        yield f"{tenant}/{request.headers['x-chat']}"
        trace.append("closed")

    made = Stage()
    app = _named_app(face, make(stream_id=name), "/chat", made)
    headers = {"X-Tenant": "acme", "X-Chat": "7"}
    assert await _one_stream(made, app, "POST", "/chat", headers=headers) == "acme/7"
    assert trace == ["opened", "closed"]


async def owner_of(x_user: Annotated[str | None, Header()] = None) -> str | None:
    """Who asks."""
    return x_user


@faces
async def test_a_foreign_owners_stream_does_not_exist(face: str) -> None:
    """Replay, lookup and stop tell a stranger what they tell about any unknown id."""
    made = Stage()
    app = _named_app(face, make(owner=owner_of), "/chat", made)
    ann, bob = {"X-User": "ann"}, {"X-User": "bob"}
    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers={ID: "chat-1", **ann})
        run = await made.run()
        run.put("one")
        await exchange.read_until(b"one")
        foreign = await client.get("/v1/stream/chat-1", headers=bob)
        nobody = await client.get("/v1/stream/chat-1")
        asked = {"conversation_ids": ["chat-1"]}
        found = await client.post("/v1/streams/lookup", headers=bob, json=asked)
        stopped = await client.delete("/v1/stream/chat-1", headers=bob)
        run.put("two")
        run.finish()
        await run.wait_closed()
        own = await client.get("/v1/stream/chat-1", headers=ann)
        own_found = await client.post("/v1/streams/lookup", headers=ann, json=asked)
    assert (foreign.status, foreign.code) == (404, "stream_not_found")
    assert nobody.status == 404
    assert foreign.body == nobody.body
    assert found.json() == []
    assert stopped.status == 204
    assert data_of(own.body) == ["one", "two"]
    assert [item["conversation_id"] for item in own_found.json()] == ["chat-1"]


@faces
async def test_two_owners_may_use_the_same_id(face: str) -> None:
    """Streams are keyed by owner and id: neither replaces the other."""
    made = Stage()
    app = _named_app(face, make(owner=owner_of), "/chat", made)
    async with running(app) as client:
        exchanges = []
        for number, user in enumerate(("ann", "bob")):
            exchanges.append(client.start("POST", "/chat", headers={ID: "chat-1", "X-User": user}))
            run = await made.run(number)
            run.put(f"for {user}")
            await exchanges[-1].read_until(user.encode())
        for run in made.runs:
            run.finish()
        for exchange in exchanges:
            await exchange.rest()
        for user in ("ann", "bob"):
            replay = await client.get("/v1/stream/chat-1", headers={"X-User": user})
            assert data_of(replay.body) == [f"for {user}"]


@faces
async def test_an_owner_dependency_may_refuse(face: str) -> None:
    """Its 401 is the answer, at the endpoint and at the routes, and nothing runs."""

    def owner(authorization: Annotated[str | None, Header()] = None) -> str:
        if authorization is None:
            raise HTTPException(401, "who are you?", {"WWW-Authenticate": "Bearer"})
        return authorization

    made = Stage()
    app = _named_app(face, make(owner=owner), "/chat", made)
    async with running(app) as client:
        first = await client.post("/chat", headers={ID: "chat-1"})
        replay = await client.get("/v1/stream/chat-1")
        stop = await client.delete("/v1/stream/chat-1")
        found = await client.post("/v1/streams/lookup", json={"conversation_ids": ["chat-1"]})
    assert [first.status, replay.status, stop.status, found.status] == [401] * 4
    assert first.headers["www-authenticate"] == "Bearer"
    assert first.json() == {"detail": "who are you?"}
    assert made.runs == []


@faces
async def test_dependency_overrides_reach_the_name_and_the_owner(face: str) -> None:
    """`app.dependency_overrides`, as users' tests set them, at the endpoint and at the routes."""
    made = Stage()
    resumable = make(stream_id=from_query, owner=owner_of)
    app = _named_app(face, resumable, "/chat", made)
    app.dependency_overrides[from_query] = lambda: "overridden"
    app.dependency_overrides[owner_of] = lambda: "tester"
    async with running(app) as client:
        exchange = client.start("POST", "/chat?conversation=q-1", headers={"X-User": "ann"})
        run = await made.run()
        run.put("one")
        run.finish()
        named = (await exchange.reply()).headers[ID.lower()]
        overridden = await client.get("/v1/stream/overridden")
        app.dependency_overrides.clear()
        own = await client.get("/v1/stream/overridden", headers={"X-User": "tester"})
        foreign = await client.get("/v1/stream/overridden", headers={"X-User": "ann"})
    assert named == "overridden"
    assert [overridden.status, own.status, foreign.status] == [200, 200, 404]


async def test_a_client_can_let_the_server_choose_the_id() -> None:
    """`auto_id=True`: a request without an id is resumable, and learns its id from the response."""
    made = stage("decorator", auto_id=True)
    async with running(made.app) as client:
        ids = []
        for number in range(2):
            exchange = made.post(client)
            run = await made.run(number)
            run.put("one")
            run.finish()
            reply = await exchange.reply()
            ids.append(reply.headers[ID.lower()])
            assert (await client.get(f"/v1/stream/{ids[-1]}")).body == reply.body
            assert (await client.get(reply.headers["content-location"])).body == reply.body
        named, run = await made.begin(client, "mine")
        run.finish()
        assert (await named.reply()).headers[ID.lower()] == "mine"
    assert len(set(ids)) == 2
    assert all(len(one) >= 16 for one in ids)


@pytest.mark.parametrize("face", ["decorator", "dependency", "route_class"])
async def test_several_resumables_live_side_by_side(face: str) -> None:
    """Two facades with settings of their own, in one app, under two prefixes: two worlds."""
    first, second = Stage(), Stage()
    app = _named_app(face, make(), "/chat", first)
    second.app = app
    _named_app(face, make(prefix="/other", event_ids=False), "/chat2", second)
    async with running(app) as client:
        one = client.start("POST", "/chat", headers={ID: "same"})
        two = client.start("POST", "/chat2", headers={ID: "same"})
        for made, name in ((first, "first"), (second, "second")):
            run = await made.run()
            run.put(name)
            run.finish()
        await one.rest()
        body = await two.rest()
        assert data_of((await client.get("/v1/stream/same")).body) == ["first"]
        assert data_of((await client.get("/other/stream/same")).body) == ["second"]
    assert body == b"data: second\n\n"
