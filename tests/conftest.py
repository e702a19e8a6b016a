"""What every test has: an event loop; and a mark, if it sees the library from outside."""

import gc
import inspect
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import hypothesis
import pydantic
import pytest
from fastapi._compat import v2
from fastapi.dependencies import models
from pydantic.fields import FieldInfo

from .support.server import LOOP, LOOPS

hypothesis.settings.register_profile(
    "usual",
    max_examples=30,
    derandomize=True,  # the same examples each time: a new one is found by `make test-long`
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "long", hypothesis.settings.get_profile("usual"), max_examples=1000, derandomize=False
)
hypothesis.settings.load_profile("usual")

for module in (httpx, httpx2):  # which wait for five seconds, less than a busy machine may need
    patience = inspect.signature(module.get).parameters["timeout"].default
    patience.connect = patience.read = patience.write = patience.pool = 60

# Each client of httpx reads its authorities anew: one takes 1 ms, all that certifi knows take 30.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).parent / "support" / "authority.pem")

OUTSIDE = {"browser", "clients", "docs", "servers"}
"""The folders of tests that start programs, and add nothing to the coverage of the others."""


@pytest.fixture(params=LOOPS if len(LOOPS) > 1 else None)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Servers run on asyncio, so the tests do."""
    return "asyncio", {"use_uvloop": getattr(request, "param", LOOP) == "uvloop"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them before `-m` selects."""
    for item in items:
        if item.path.parent.name in OUTSIDE:
            item.add_marker("outside")


def pytest_collection_finish() -> None:
    """Keep what was imported out of the collections that tests ask for: they look at what the tests have made."""
    gc.collect()
    gc.freeze()


FASTAPI_CACHES = [value for value in vars(models).values() if hasattr(value, "cache_clear")]
"""They keep the applications of thousands of tests, which the garbage collector would look at again and again."""


KEPT: dict[tuple[Any, str], Any] = {}
"""FastAPI examines the parameters of the library's routes anew for each application of each test, and twice where a
router is included: half of the time of a test, for a dozen kinds of field."""


def type_adapter(kind: Any, *, config: Any = None) -> Any:
    """Make the adapter of a field, or take that of an equal one; but not of a type that a test has made."""
    # Not as FastAPI's own fields show themselves, some of which name their default alone.
    metadata = repr([FieldInfo.__repr__(part) if isinstance(part, FieldInfo) else part for part in kind.__metadata__])
    shared = kind.__origin__ in (str, str | None) or getattr(kind.__origin__, "__module__", "").startswith(
        "fastapi_resumable."
    )
    if config is not None or not shared or " at 0x" in metadata or "default_factory" in metadata:
        return pydantic.TypeAdapter(kind, config=config)
    if (kind.__origin__, metadata) not in KEPT:
        KEPT[kind.__origin__, metadata] = pydantic.TypeAdapter(kind)
    return KEPT[kind.__origin__, metadata]


v2.TypeAdapter = type_adapter  # type: ignore[assignment,misc]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None]:
    """Free the application of a test, and show what it has left open in that test, not in a later one."""
    yield
    for cache in FASTAPI_CACHES:
        cache.cache_clear()
    gc.collect()
    gc.freeze()  # what is there still, fixtures above all, is not looked at after each test
