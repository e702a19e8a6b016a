"""What goes over the wire as JSON, and the states of a stream. Public models start with `Resumable`."""

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ResumableStatus(StrEnum):
    """The state of a stream. All but `queued` and `in_progress` are final."""

    QUEUED = "queued"
    """A request is waiting for its endpoint to begin to answer."""
    IN_PROGRESS = "in_progress"
    """The producer is running."""
    COMPLETED = "completed"
    """The response ended in order."""
    FAILED = "failed"
    """The application raised after the response had begun."""
    CANCELLED = "cancelled"
    """It was stopped, or a newer request replaced it."""
    INTERRUPTED = "interrupted"
    """The producer was lost: a crash, a kill, a shutdown past the grace."""


class ResumableStreamItem(BaseModel):
    """One stream, as a lookup shows it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "conversation_id": "chat-42",
                    "status": "in_progress",
                    "is_done": False,
                    "epoch": "mfrggzdfmztwq2lk",
                    "total_bytes": 5120,
                    "dropped_bytes": 0,
                    "content_type": "text/event-stream; charset=utf-8",
                    "started_at": 1795161600,
                    "completed_at": 0,
                }
            ]
        }
    )

    # The names of this, of `is_done`, `total_bytes`, `started_at` and `completed_at` are those of llama.cpp's server,
    # whose clients read them, so the start is in seconds and the end is 0 rather than null.
    conversation_id: str = Field(description="The stream id.")
    status: ResumableStatus = Field(description="What the stream is doing, or how it ended.")
    is_done: bool = Field(description="Whether the stream has ended, in whatever way.")
    epoch: str = Field(description="Which run of the id this is; a new request begins a new one.")
    total_bytes: int = Field(ge=0, description="The tail of the log: how many bytes have been recorded.")
    dropped_bytes: int = Field(ge=0, description="The earliest offset that can still be read.")
    content_type: str | None = Field(description="The media type of the response; null while queued.")
    started_at: int = Field(
        ge=0, description="When the stream began, in Unix seconds; while queued, when it was asked for."
    )
    completed_at: int = Field(ge=0, description="When the stream ended, in Unix seconds; 0 while it is live.")


class ResumableLookup(BaseModel):
    """The body of a lookup."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"conversation_ids": ["chat-42", "chat-43"]}]})

    conversation_ids: list[str] = Field(
        max_length=1000, description="The ids to look for. An id also matches its variants, `id::anything`."
    )


class ResumableChatStop(BaseModel):
    """The body of a stop as the AI SDK's guide sends it; members that are not listed are ignored."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"activeStreamId": "mfrggzdfmztwq2lk"}]})

    activeStreamId: str | None = Field(  # noqa: N815  # the AI SDK's name
        None, description="The epoch that is meant, from `X-Stream-Epoch`: any other is left alone. Default: any."
    )


class ResumableChatStopped(BaseModel):
    """The answer to a stop, as the AI SDK's guide has it."""

    success: Literal[True] = True


class ResumableErrorDetail(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(extra="allow")

    code: str = Field(description="A stable name for the case, for programs.")
    message: str = Field(description="A sentence for people.")


class ResumableErrorResponse(BaseModel):
    """The body of an error."""

    detail: ResumableErrorDetail
