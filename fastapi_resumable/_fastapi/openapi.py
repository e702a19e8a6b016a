"""What OpenAPI shows of the routes: their parameters, and the options of each route by its name."""

from typing import Annotated, Any

from fastapi import Header, Path, Query, Response
from pydantic import BaseModel, WithJsonSchema

from .._run.watch import encode
from ..exceptions import (
    InvalidOffset,
    InvalidRequest,
    InvalidStreamId,
    OffsetLost,
    OffsetOutOfRange,
    ResumableError,
    ShuttingDown,
    StoreUnavailable,
    StreamNotFound,
    StreamPending,
    StreamReplaced,
    UnknownEventId,
)
from ..models import ResumableErrorResponse, ResumableLookup, ResumableStatus, ResumableStreamItem

# All are text for FastAPI, so that it accepts any value, and wrong values get the library's own errors.
_Place = WithJsonSchema({"type": "integer", "minimum": 0})
PathId = Annotated[str, Path(description="The stream id; it may contain slashes.", examples=["chat-42"])]
QueryId = Annotated[str | None, Query(description="The stream id; for ids that are awkward in a path.")]
Epoch = Annotated[
    str | None, Query(description="The epoch that is meant: any other is refused (replay) or left alone (stop).")
]
LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        description="Replay from right after this event. Wins over all others. Polyfills may send it in the query, as "
        "`lastEventId` or `last_event_id`.",
    ),
]


class ReplayQuery(BaseModel):
    """The place to replay from. One model for all routes: FastAPI examines it once."""

    start: Annotated[
        str | None, _Place, Query(alias="from", description="Offset in bytes to replay from. Default: the start.")
    ] = None
    starting_after: Annotated[
        str | None,
        _Place,
        Query(
            description="For streams whose events carry a `sequence_number` in their JSON data, as OpenAI's do: only "
            "events with a higher number. Wins over `from`."
        ),
    ] = None
    epoch: Epoch = None


class ReplayQueryWithId(ReplayQuery):
    """The same where the query has the id as well."""

    conv_id: QueryId = None


_ERROR = {"$ref": f"#/components/schemas/{ResumableErrorResponse.__name__}"}


def error_responses(*errors: type[ResumableError]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI `responses` for these errors, with examples. One route of a router has to name the model."""
    # FastAPI examines the model of each response when an application starts, which took a third of the router's time.
    responses: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        summary = (error.__doc__ or "").strip().partition("\n")[0]
        # Several errors have one status, and OpenAPI has one response for each status.
        entry = responses.setdefault(
            error.status_code, {"description": "", "content": {"application/json": {"schema": _ERROR, "examples": {}}}}
        )
        entry["description"] = f"{entry['description']} `{error.code}`: {summary}".strip()
        entry["content"]["application/json"]["examples"][error.code] = {
            "summary": summary,
            "value": {"detail": {"code": error.code, "message": summary}},
        }
    return responses


OTHER_RESPONSES: dict[int | str, dict[str, Any]] = {
    # Declared so that FastAPI documents no 422, which our routes do not send.
    "4XX": {"description": "What a dependency of the application answers, like 401."},
}
_REPLAY_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The recorded bytes from the offset on, then live ones until the stream ends. "
        "Media type, status and headers are those of the recorded response.",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'data: {"text":"Hello"}\nid: mfrggzdfmztwq2lk-53\n\n',
            },
            "*/*": {"schema": {"type": "string", "format": "binary"}},
        },
        "headers": {
            name: {"description": description, "schema": {"type": "string"}}
            for name, description in {
                "X-Conversation-Id": "The stream id.",
                "X-Stream-Epoch": "Which run of the id this is.",
                "Content-Location": "The URL of the replay.",
            }.items()
        },
    },
    204: {"description": "Asked by `Last-Event-ID`: the stream has ended, and the client has had all of it."},
    **error_responses(
        InvalidStreamId,
        InvalidOffset,
        OffsetLost,
        UnknownEventId,
        StreamNotFound,
        StreamReplaced,
        OffsetOutOfRange,
        StreamPending,
        StoreUnavailable,
    ),
    **OTHER_RESPONSES,
}
REPLAY: dict[str, Any] = {
    "summary": "Replay a stream, and follow it to its end",
    "description": "Every client gets the bytes of the log, in order, from its offset. Never starts work.",
    "response_class": Response,
    "responses": _REPLAY_RESPONSES,
}
DESCRIBE: dict[str, Any] = {
    "summary": "Describe a stream",
    "description": "Status and headers of the replay, and `X-Stream-*` headers.",
    "response_class": Response,
    "responses": {
        # A response to HEAD has no body (RFC 9110 §9.3.2).
        status: {key: value for key, value in response.items() if key != "content"}
        for status, response in _REPLAY_RESPONSES.items()
    },
}
STOP: dict[str, Any] = {
    "status_code": 204,
    "summary": "Stop a stream",
    "description": "The endpoint is cancelled, readers get the terminal event, and the stream is gone.",
    "response_class": Response,
    "responses": {
        204: {"description": "The stream is gone, or never was: the answer does not tell."},
        **error_responses(InvalidStreamId, StoreUnavailable),
        **OTHER_RESPONSES,
    },
}
STOP["responses"][503]["model"] = ResumableErrorResponse
# Written out, because the routes read the body themselves: FastAPI's own validation would answer 422.
_IDS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": ResumableLookup.model_json_schema()}},
    }
}
LOOKUP: dict[str, Any] = {
    "summary": "Look up streams by id",
    "description": "Which of these streams there are, and what they are doing. Only ids that are asked for are shown.",
    "response_model": list[ResumableStreamItem],
    "response_description": "The streams that there are, each once.",
    "responses": {**error_responses(InvalidRequest, StoreUnavailable), **OTHER_RESPONSES},
    "openapi_extra": _IDS,
}
WATCH: dict[str, Any] = {
    "summary": "Watch streams by id",
    "description": "What a lookup of these ids shows, and then each change, as server-sent events. Streams that come "
    "later are shown, too. Only ids that are asked for are shown.",
    "response_class": Response,
    "responses": {
        200: {
            "description": "One event for each stream that there is, then one for each change: a stream that begins, "
            "or ends, or comes to be. The response has no end of its own; when it ends, ask again.",
            "content": {
                "text/event-stream": {
                    # OpenAPI 3.2's way to describe the items of a stream, which FastAPI's own event streams use, too.
                    "itemSchema": {
                        "type": "object",
                        "required": ["event", "data"],
                        "properties": {
                            "event": {"type": "string", "enum": [f"stream.{status}" for status in ResumableStatus]},
                            "data": {
                                "type": "string",
                                "contentMediaType": "application/json",
                                "contentSchema": {"$ref": "#/components/schemas/ResumableStreamItem"},
                            },
                        },
                    },
                    "example": encode(
                        ResumableStreamItem(**ResumableStreamItem.model_json_schema()["examples"][0])
                    ).decode(),
                },
            },
        },
        **error_responses(InvalidRequest, ShuttingDown, StoreUnavailable),
        **OTHER_RESPONSES,
    },
    "openapi_extra": _IDS,
}
