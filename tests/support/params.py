"""Which of many parameters `make test` takes."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def representatives(values: Iterable[Any], chosen: Callable[[Any], object]) -> list[Any]:
    """All the values as parameters: those not chosen run in `make test-long` alone.

    For dimensions that do not depend on each other: one of each shows what all their combinations do.
    """
    return [value if chosen(value) else in_long_runs(value) for value in values]


def in_long_runs(value: Any) -> Any:
    """The value as a parameter of `make test-long`."""
    if hasattr(value, "marks"):  # a parameter already
        return pytest.param(*value.values, id=value.id, marks=[*value.marks, pytest.mark.long])
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.long)
