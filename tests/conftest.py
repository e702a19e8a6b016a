"""What every test has: asyncio as the event loop."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Servers run on asyncio, so the tests do."""
    return "asyncio"
