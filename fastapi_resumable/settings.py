"""Every option of a `Resumable`: its type, default and rule, stated once; and the error messages for wrong ones."""

import functools
import inspect
import multiprocessing
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Literal, ParamSpec, Self, cast

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator
from starlette.routing import compile_path
from uvicorn import Config

from ._core.terminal import TerminalEvent
from .stores.base import Store

if TYPE_CHECKING:
    from pydantic_settings import BaseSettings

MIB = 1024 * 1024
PREFIX = "FASTAPI_RESUMABLE_"

StoreUrl = Annotated[str, StringConstraints(pattern=r"^(memory|sqlite:///.+|(redis|rediss|unix)://.+)$")]

IdDependency = Callable[..., Any]
"""A FastAPI dependency that returns (or yields) `str | None`."""

# As FastAPI has it for a prefix; and without what clients remove from a URL, or send in another form.
_VALID_PREFIX = re.compile(r"(?!//)(/(?!\.\.?(?:/|\Z))(?:[^/?#%{}\\\x00-\x1f\x7f]|\{[a-zA-Z_][a-zA-Z0-9_]*\})*)*(?<!/)")
_TAKEN_NAMES = {"_last_event_id", "conv_id", "conversation_id", "digest", "epoch", "query"}
"""Names that the parameters of the router's own routes have."""

_P = ParamSpec("_P")
_A_DEPENDENCY = "must be a FastAPI dependency: a function that returns str or None"


def is_reloaded() -> bool:
    """Whether the application is imported by a server that restarts at every change of a file, as `fastapi dev`."""
    # A reloader runs the application in a child, so a process without a parent of multiprocessing's need not be
    # searched.
    if multiprocessing.parent_process() is None:
        return False
    # The server is among the callers of the import, and its configuration is available nowhere else.
    frame = sys._getframe()  # noqa: SLF001  # the way to walk the stack that takes no time
    while (caller := frame.f_back) is not None:
        frame = caller
        config = frame.f_locals.get("config")
        if isinstance(config, Config):
            return config.should_reload
    return False


class ResumableSettings(BaseModel):
    """Settings of a `Resumable`; each can also come from the environment, as `FASTAPI_RESUMABLE_<NAME>`.

    What is given in code wins over the environment. Durations are in seconds, sizes in bytes.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    prefix: str = Field(
        default="/v1",
        description="must be empty, or a path like '/v1' or '/{tenant}/v1', without a '/' at its end, ?, #, % and "
        "dot segments",
    )
    on_conflict: Literal["replace", "attach", "reject"] = Field(
        default="replace", description="must be 'replace', 'attach' or 'reject'"
    )
    event_ids: bool | Literal["first"] = Field(default=True, description="must be true, false or 'first'")
    ping: float = Field(default=15.0, ge=0, description="must be a number of seconds, or 0 for no keep-alives")
    max_stream_bytes: int = Field(default=4 * MIB, gt=0, description="must be a positive number of bytes, like 4194304")
    max_total_bytes: int = Field(
        default=1024 * MIB, gt=0, description="must be a positive number of bytes, like 1073741824"
    )
    max_streams: int = Field(default=10_000, gt=0, description="must be a positive number of streams")
    max_streams_per_owner: int | None = Field(
        default=None, gt=0, description="must be a positive number of streams (leave it out for no limit)"
    )
    retention: float = Field(default=300.0, ge=0, description="must be a number of seconds that is not negative")
    head_timeout: float = Field(default=1.0, ge=0, description="must be a number of seconds that is not negative")
    pending_timeout: float = Field(default=2.0, ge=0, description="must be a number of seconds that is not negative")
    stall_timeout: float = Field(default=30.0, gt=0, description="must be a positive number of seconds")
    stop_grace: float = Field(default=5.0, ge=0, description="must be a number of seconds that is not negative")
    # With a reloader each save would wait for the live streams, so that the new code would be seen ten seconds late.
    shutdown_grace: float = Field(
        default_factory=lambda: 0.0 if is_reloaded() else 10.0,
        ge=0,
        description="must be a number of seconds that is not negative",
    )
    auto_id: bool = Field(default=False, description="must be true or false")
    terminal_event: TerminalEvent = Field(
        default="sse",
        description="must be 'sse', 'openai', 'ai-sdk', 'ag-ui' or 'anthropic' (in code also a function of status, "
        "code and message to bytes or None)",
    )
    trace_stream_ids: bool = Field(default=True, description="must be true or false")
    store: StoreUrl = Field(
        default="memory",
        repr=False,  # it may hold a password
        description="must be 'memory', a file like 'sqlite:///streams.db', or the URL of a Redis, like "
        "'redis://localhost:6379/0' (in code also a store, like MemoryStore())",
    )

    @field_validator("prefix")
    @classmethod
    def _check_prefix(cls, prefix: str) -> str:
        # Starlette refuses a parameter that comes twice, and a kind of parameter that it does not know.
        if not _VALID_PREFIX.fullmatch(compile_path(prefix)[1]):
            raise ValueError("no request can have such a path")
        return prefix

    @model_validator(mode="before")
    @classmethod
    def _add_environment(cls, given: dict[str, Any]) -> dict[str, Any]:
        # Before the validation, so that a value from the environment is checked, and named in its error, like one from
        # code.
        return _from_environment() | given

    @classmethod
    def load(cls, given: dict[str, Any]) -> Self:
        """Check what was given in code, and take the rest from the environment.

        Raises:
            ValueError: A value is wrong; the message names it and says what it must be.
        """
        try:
            settings = cls(**given)
        except ValidationError as exc:
            # A setting that may have several types has one error for each of them in pydantic, and one sentence here.
            raise ValueError("\n".join(dict.fromkeys(cls._sentence(error, given) for error in exc.errors()))) from None
        for name in _TAKEN_NAMES.intersection(compile_path(settings.prefix)[2]):
            raise ValueError(f"prefix has a parameter {name!r}, as the router's own routes have: give it another name.")
        # A rule about two fields: it has no one field that pydantic could name.
        if settings.max_total_bytes < settings.max_stream_bytes:
            raise ValueError(
                f"max_total_bytes ({settings.max_total_bytes}) must be at least max_stream_bytes "
                f"({settings.max_stream_bytes}): one stream would not fit. Raise the one or lower the other."
            )
        return settings

    @classmethod
    def _sentence(cls, error: Any, given: dict[str, Any]) -> str:
        name = str(error["loc"][0])
        source, rule = name, cls.model_fields[name].description or ""
        if name not in given:
            source = f"{name} ({PREFIX}{name.upper()} in the environment)"
            # What an operator cannot write.
            rule = rule.partition(" (in code")[0]
        value = given.get(name, error["input"])
        if name == "store" and isinstance(value, str) and not {"@", "?"}.isdisjoint(value):
            # Errors end up in logs, and this may be a URL with a password.
            scheme, separator, _ = value.partition("://")
            value = f"{scheme}://..." if separator else "..."
        return f"{source} {rule}, not {value!r}."


class ResumableOptions(ResumableSettings):
    """What `Resumable` takes: its settings, and what can be set in code alone."""

    store: Store | StoreUrl | None = Field(  # type: ignore[assignment]  # wider: the object, too
        default=None,
        repr=False,  # it may hold a password
        description=ResumableSettings.model_fields["store"].description,
    )
    stream_id: IdDependency | None = Field(default=None, description=_A_DEPENDENCY)
    owner: IdDependency | None = Field(default=None, description=_A_DEPENDENCY)


def takes(options: Callable[_P, Any]) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, _P], None]]:
    """Give a method that takes `**given` the keywords of a class of settings, with their types and defaults."""
    signature = inspect.signature(options)

    def decorate(method: Callable[..., None]) -> Callable[Concatenate[Any, _P], None]:
        @functools.wraps(method)
        def checked(self: Any, /, *args: _P.args, **given: _P.kwargs) -> None:
            # A misspelt option is a `TypeError` of the call, with its name, as for any other function.
            signature.bind(*args, **given)
            method(self, **given)

        this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        checked.__signature__ = signature.replace(  # type: ignore[attr-defined]  # inspect's protocol
            parameters=[this, *signature.parameters.values()], return_annotation=None
        )
        return checked

    return decorate


def _from_environment() -> dict[str, Any]:
    # Environment variables are matched without regard to case, as pydantic-settings does.
    if not any(name.upper().startswith(PREFIX) for name in os.environ):
        return {}
    # Not before it is needed: it takes as long to import as the library.
    from pydantic_settings import EnvSettingsSource  # noqa: PLC0415  # only if a variable is set

    return EnvSettingsSource(cast("type[BaseSettings]", ResumableSettings), env_prefix=PREFIX)()
