"""For those who write a store: the tests that every store has to pass. The only part that needs pytest."""

import pytest

# Before they are imported: a failure then shows the values, as it does in a test module.
pytest.register_assert_rewrite(
    *(
        f"{__name__}.{module}"
        for module in ("contests", "ending", "naming", "reading", "sharing", "starting", "tools", "watching")
    )
)

from .sharing import SharedStoreConformance  # noqa: E402
from .suite import StoreConformance  # noqa: E402

__all__ = ["SharedStoreConformance", "StoreConformance"]
