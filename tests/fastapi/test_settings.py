"""What `Resumable(...)` says of a wrong setting, to the developer or to the operator who has to mend it."""

import inspect

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from fastapi_resumable import Resumable

CODE = ("None", "MemoryStore()", "function", "*")


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("max_streams_per_owner", "none", "leave it out for no limit"),
        ("max_stream_bytes", "4 MiB", "4194304"),
        ("max_total_bytes", "1 GiB", "1073741824"),
        ("terminal_event", "json", "'anthropic'"),
        ("store", "mongodb://localhost", "'sqlite:///streams.db'"),
    ],
)
def test_a_wrong_value_in_the_environment_is_answered_by_what_an_operator_can_write(
    name: str, value: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No Python: neither `None`, nor an expression, nor an object."""
    monkeypatch.setenv(f"FASTAPI_RESUMABLE_{name.upper()}", value)
    with pytest.raises(ValueError, match="in the environment") as caught:
        Resumable()
    sentence = str(caught.value)
    assert advice in sentence
    assert not any(each in sentence for each in CODE), sentence


@pytest.mark.parametrize(
    ("name", "advice"), [("terminal_event", "a function of status, code and message"), ("store", "MemoryStore()")]
)
def test_a_wrong_value_in_code_is_answered_by_objects_too(name: str, advice: str) -> None:
    """A developer can give more than an operator."""
    with pytest.raises(ValueError, match=name) as caught:
        Resumable(**{name: 7})  # type: ignore[arg-type]
    assert advice in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "/v1", "/{tenant}", "/{tenant:int}/a", "/a b", "/ü", "/.well-known", "/a..b"])
def test_a_prefix_that_fastapi_takes_is_taken(prefix: str) -> None:
    """With parameters, too."""
    app = FastAPI()
    app.include_router(Resumable(prefix=prefix).router)
    assert app.openapi()["paths"]


@pytest.mark.parametrize(
    "prefix",
    [
        *("v1", "/", "/v1/", "//v1", "/v1?x=1", "/v1#x", "/v%201", "/./v1", "/v1/..", "/a\n", "/a\nb"),
        *("/{tenant", "/tenant}", "/{1a}", "/{}", "/{a}/{a}", "/{tenant:nonsense}"),
    ],
)
def test_a_prefix_that_cannot_work_is_refused_at_once(prefix: str) -> None:
    """Its routes would never be found, or FastAPI would refuse them when the router is made."""
    with pytest.raises(ValueError, match=r"like '/v1' or '/\{tenant\}/v1'"):
        Resumable(prefix=prefix)


def test_a_parameter_of_the_prefix_has_another_name_than_those_of_the_routes() -> None:
    """One of our own would be taken for the prefix's."""
    refused = {name for name in _parameters() if _is_refused(f"/{{{name}}}")}
    assert refused == _parameters() - {"request", "owner"}
    assert not _is_refused("/{user}")


def _parameters() -> set[str]:
    routes = [route for route in Resumable().router.routes if isinstance(route, APIRoute)]
    return {name for route in routes for name in inspect.signature(route.endpoint).parameters}


def _is_refused(prefix: str) -> bool:
    try:
        Resumable(prefix=prefix)
    except ValueError as exc:
        return "another name" in str(exc)
    return False
