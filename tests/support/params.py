"""Which of many parameters `make test` takes."""

from collections.abc import Callable, Iterable
from itertools import chain, product
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


def spread(*dimensions: pytest.MarkDecorator) -> pytest.MarkDecorator:
    """One parametrisation for several that do not depend on each other: `@spread(every_face, both_specs)`.

    Each value of each of them is in at least one test of `make test`; all their combinations are in `make test-long`.
    """
    names: list[str] = []
    columns: list[list[tuple[str, tuple[Any, ...]]]] = []
    for dimension in dimensions:
        named, values = dimension.args
        own = named if isinstance(named, list | tuple) else [each.strip() for each in named.split(",")]
        ids = list(dimension.kwargs.get("ids") or map(str, values))
        names += own
        columns.append([(id_, value if len(own) > 1 else (value,)) for id_, value in zip(ids, values, strict=True)])
    diagonal = [tuple(column[n % len(column)][0] for column in columns) for n in range(max(map(len, columns)))]
    cases = []
    for cells in product(*columns):
        ids, values = zip(*cells, strict=True)
        marks = [] if ids in diagonal else [pytest.mark.long]
        cases.append(pytest.param(*chain(*values), id="-".join(ids), marks=marks))
    return pytest.mark.parametrize(names, cases)
