"""The settings, from code or from the environment, and the error messages for wrong ones."""

import os
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .._core.terminal import TerminalEvent
from .reloader import is_reloaded

if TYPE_CHECKING:
    from pydantic_settings import BaseSettings

MIB = 1024 * 1024
PREFIX = "FASTAPI_RESUMABLE_"


class ResumableSettings(BaseModel):
    """Settings of a `Resumable`; each can also come from the environment, as `FASTAPI_RESUMABLE_<NAME>`.

    What is given in code wins over the environment. Durations are in seconds, sizes in bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)

    prefix: str = Field(
        "/v1", pattern=r"^(/.*[^/])?$", description="must be empty, or start with '/' and not end with one"
    )
    on_conflict: Literal["replace", "attach", "reject"] = Field(
        "replace", description="must be 'replace', 'attach' or 'reject'"
    )
    event_ids: bool | Literal["first"] = Field(True, description="must be true, false or 'first'")
    ping: float = Field(15.0, ge=0, description="must be a number of seconds, or 0 for no keep-alives")
    max_stream_bytes: int = Field(4 * MIB, gt=0, description="must be a positive number of bytes, like 4 * 1024 * 1024")
    max_total_bytes: int = Field(1024 * MIB, gt=0, description="must be a positive number of bytes, like 1024 ** 3")
    max_streams: int = Field(10_000, gt=0, description="must be a positive number of streams")
    max_streams_per_owner: int | None = Field(
        None, gt=0, description="must be a positive number of streams, or None for no limit"
    )
    retention: float = Field(300.0, ge=0, description="must be a number of seconds that is not negative")
    head_timeout: float = Field(1.0, ge=0, description="must be a number of seconds that is not negative")
    pending_timeout: float = Field(2.0, ge=0, description="must be a number of seconds that is not negative")
    stall_timeout: float = Field(30.0, gt=0, description="must be a positive number of seconds")
    stop_grace: float = Field(5.0, ge=0, description="must be a number of seconds that is not negative")
    shutdown_grace: float = Field(
        default_factory=lambda: 0.0 if is_reloaded() else 10.0,
        ge=0,
        description="must be a number of seconds that is not negative",
    )
    auto_id: bool = Field(False, description="must be true or false")
    terminal_event: TerminalEvent = Field(
        "sse",
        description="must be 'sse', 'openai', 'ai-sdk', 'ag-ui', 'anthropic', or a function of status, code and "
        "message to bytes or None",
    )
    trace_stream_ids: bool = Field(True, description="must be true or false")
    store: str = Field(
        "memory",
        pattern=r"^(memory|sqlite:///.+|(redis|rediss|unix)://.+)$",
        description="must be 'memory', a file like 'sqlite:///streams.db', or the URL of a Redis, like "
        "'redis://localhost:6379/0'",
    )

    def __init__(self, **given: Any) -> None:
        """Take from the environment what is not given."""
        super().__init__(**(_from_environment() | given))


def _from_environment() -> dict[str, Any]:
    if not any(name.upper().startswith(PREFIX) for name in os.environ):
        return {}
    # Not before it is needed: it takes as long to import as the library.
    from pydantic_settings import EnvSettingsSource  # noqa: PLC0415  # only if a variable is set

    return EnvSettingsSource(cast("type[BaseSettings]", ResumableSettings), env_prefix=PREFIX)()


def load_settings(given: dict[str, Any]) -> ResumableSettings:
    """Check what was given in code, and take the rest from the environment.

    Raises:
        ValueError: A value is wrong; the message names it and says what it must be.
    """
    try:
        settings = ResumableSettings(**given)
    except ValidationError as exc:
        raise ValueError("\n".join(dict.fromkeys(_sentence(error, given) for error in exc.errors()))) from None
    if settings.max_total_bytes < settings.max_stream_bytes:
        raise ValueError(
            f"max_total_bytes ({settings.max_total_bytes}) must be at least max_stream_bytes "
            f"({settings.max_stream_bytes}): one stream would not fit. Raise the one or lower the other."
        )
    return settings


def _sentence(error: Any, given: dict[str, Any]) -> str:
    name = str(error["loc"][0])
    source = name if name in given else f"{name} (FASTAPI_RESUMABLE_{name.upper()} in the environment)"
    return f"{source} {ResumableSettings.model_fields[name].description}, not {error['input']!r}."
