"""What OpenAPI says of our routes, and that it says the same of the user's as without us."""

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from fastapi_resumable import Resumable, ResumableStream

ERRORS = {
    ("get", "/v1/stream/{id}"): {
        "400": {"invalid_offset", "offset_lost", "unknown_event_id", "invalid_stream_id"},
        "404": {"stream_not_found"},
        "409": {"stream_replaced"},
        "416": {"offset_out_of_range"},
        "503": {"stream_pending"},
    },
    ("delete", "/v1/stream/{id}"): {"400": {"invalid_stream_id"}},
    ("post", "/v1/streams/lookup"): {"400": {"invalid_request"}},
    ("post", "/v1/streams/watch"): {"400": {"invalid_request"}, "503": {"shutting_down"}},
}


class Prompt(BaseModel):
    """A model of the user's."""

    text: str


class Item(BaseModel):
    """Models with names that a library might take."""

    name: str


class Error(BaseModel):
    code: str


class Detail(BaseModel):
    code: str


class StreamItem(BaseModel):
    code: str


class LookupRequest(BaseModel):
    code: str


class Status(BaseModel):
    code: str


def user_app(resumable: Resumable | None) -> FastAPI:
    """An application with a few endpoints; resumable if asked for."""
    app = FastAPI()

    def wrap(endpoint: Any) -> Any:
        return resumable.stream(endpoint) if resumable else endpoint

    @app.post("/chat", tags=["chat"], status_code=201, responses={404: {"model": Error}})
    @wrap
    async def chat(prompt: Prompt, limit: int = 5) -> StreamingResponse:
        """Talk."""
        return StreamingResponse(iter([prompt.text, str(limit)]), media_type="text/event-stream")

    @app.get("/watch/{item_id}", response_model=None)
    @wrap
    def watch(item_id: int) -> StreamingResponse:
        return StreamingResponse(iter([str(item_id)]))

    @app.post("/typed")
    async def typed(a: Item, b: Detail, c: StreamItem, d: LookupRequest) -> Status:
        return Status(code=a.name + b.code + c.code + d.code)

    if resumable:
        app.include_router(resumable.router)
    return app


def with_dependency(resumable: Resumable | None) -> FastAPI:
    """The form with a dependency, and what it looks like without."""
    app = FastAPI()
    if resumable is None:

        @app.post("/chat")
        async def plain(prompt: Prompt) -> StreamingResponse:
            return StreamingResponse(iter([prompt.text]))

    else:

        @app.post("/chat", name="plain", operation_id="plain_chat_post")
        async def ours(prompt: Prompt, stream: Annotated[ResumableStream, Depends(resumable)]) -> StreamingResponse:
            return stream(StreamingResponse(iter([prompt.text])))

    return app


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return user_app(Resumable()).openapi()


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            yield method, path, operation


def test_the_users_endpoints_are_described_as_without_us(schema: dict[str, Any]) -> None:
    """Paths, parameters, bodies, responses, operation ids: byte for byte."""
    before = user_app(None).openapi()
    for path, item in before["paths"].items():
        assert schema["paths"][path] == item


def test_the_users_schemas_keep_their_names(schema: dict[str, Any]) -> None:
    """None is renamed for a namesake of ours, and ours are called `Resumable...`."""
    before = user_app(None).openapi()["components"]["schemas"]
    after = schema["components"]["schemas"]
    for name, model in before.items():
        assert after[name] == model
    ours = set(after) - set(before)
    assert ours
    assert all(name.startswith("Resumable") for name in ours), ours


def test_the_dependency_form_adds_nothing_to_the_endpoint() -> None:
    """No header, no parameter, no body member shows."""
    before = with_dependency(None).openapi()["paths"]["/chat"]["post"]
    after = with_dependency(Resumable()).openapi()["paths"]["/chat"]["post"]
    for key in ("operationId", "summary"):
        before.pop(key), after.pop(key)
    assert after == before


def ours(schema: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    users = user_app(None).openapi()["paths"]
    return {(method, path): operation for method, path, operation in operations(schema) if path not in users}


def find(schema: dict[str, Any], method: str, like: str) -> list[dict[str, Any]]:
    """Our operations at a path, whatever its parameter is called."""
    head = like.split("{", maxsplit=1)[0].rstrip("/")
    return [
        operation
        for (verb, path), operation in ours(schema).items()
        if verb == method and path.split("{")[0].rstrip("/") == head
    ]


def test_every_route_is_documented_with_words(schema: dict[str, Any]) -> None:
    """Both forms of replay and stop, and lookup, each with a summary and a description."""
    assert len(find(schema, "get", "/v1/stream/{id}")) == 2
    assert len(find(schema, "delete", "/v1/stream/{id}")) == 2
    assert len(find(schema, "post", "/v1/streams/lookup")) == 1
    for place, operation in ours(schema).items():
        assert operation.get("summary"), place
        assert operation.get("description"), place
    ids = [operation["operationId"] for _, _, operation in operations(schema)]
    assert len(ids) == len(set(ids))


def codes_in(response: dict[str, Any]) -> set[str]:
    """Every error code that the examples of a response show."""
    found = set()
    for content in response.get("content", {}).values():
        examples = [example.get("value") for example in content.get("examples", {}).values()]
        for example in [*examples, content.get("example")]:
            if example:
                assert set(example["detail"]) >= {"code", "message"}
                found.add(example["detail"]["code"])
    return found


@pytest.mark.parametrize(("method", "path"), ERRORS)
def test_the_errors_are_documented_with_examples(schema: dict[str, Any], method: str, path: str) -> None:
    """Every row of the table is a response with an example of its code and a schema."""
    for operation in find(schema, method, path):
        for status, codes in ERRORS[method, path].items():
            response = operation["responses"][status]
            assert codes <= codes_in(response), (status, codes_in(response))
            assert response["description"]
            assert "$ref" in response["content"]["application/json"]["schema"]


def test_a_replay_documents_what_it_takes_and_gives(schema: dict[str, Any]) -> None:
    """`from`, `starting_after`, `epoch`, `Last-Event-ID`, the id; 200, 204; and no 422 that it never answers."""
    names = set()
    for operation in find(schema, "get", "/v1/stream/{id}"):
        parameters = {parameter["name"].lower() for parameter in operation["parameters"]}
        names |= parameters
        assert {"from", "starting_after", "last-event-id"} <= parameters
        assert {"200", "204"} <= set(operation["responses"])
        assert "422" not in operation["responses"]
    assert "conv_id" in names


def test_a_stop_documents_204_and_the_epoch(schema: dict[str, Any]) -> None:
    """And nothing that would tell whether there was a stream."""
    for operation in find(schema, "delete", "/v1/stream/{id}"):
        assert "204" in operation["responses"]
        assert not {"200", "404", "422"} & set(operation["responses"])
        assert "epoch" in {parameter["name"] for parameter in operation["parameters"]}


def test_a_lookup_documents_its_body_and_its_items(schema: dict[str, Any]) -> None:
    """The request has `conversation_ids`, the answer is an array of items with all fields."""
    (operation,) = find(schema, "post", "/v1/streams/lookup")
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    request = schema["components"]["schemas"][body["$ref"].split("/")[-1]] if "$ref" in body else body
    assert "conversation_ids" in request["properties"]
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer["type"] == "array"
    item = schema["components"]["schemas"][answer["items"]["$ref"].split("/")[-1]]
    fields = {"conversation_id", "is_done", "total_bytes", "started_at", "completed_at", "status", "epoch"}
    assert {*fields, "dropped_bytes", "content_type"} == set(item["properties"])
    assert "422" not in operation["responses"]


def test_the_prefix_is_where_the_routes_are() -> None:
    """`/v1` by default, anything by setting, and the include's own prefix in front."""
    app = FastAPI()
    app.include_router(Resumable(prefix="/other").router, prefix="/api")
    assert all(path.startswith("/api/other/") for path in app.openapi()["paths"])
    default = FastAPI()
    default.include_router(Resumable().router)
    assert all(path.startswith("/v1/stream") for path in default.openapi()["paths"])
