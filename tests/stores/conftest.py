"""The conformance suite runs on the event loop that the other tests run on."""

from typing import Any

import pytest
import uvloop

from tests.conformance.scenario import Conformance


@pytest.fixture(autouse=True)
def chosen_loop(request: pytest.FixtureRequest, anyio_backend: tuple[str, dict[str, Any]]) -> None:
    """Tell it; it makes its loops itself."""
    if isinstance(request.instance, Conformance) and anyio_backend[1]["use_uvloop"]:
        request.instance.loop_factory = uvloop.new_event_loop
