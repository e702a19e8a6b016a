"""Searches through a log, which run in steps."""

from typing import TypeVar

from fastapi_resumable._core.search import Search

T = TypeVar("T")


def result_of(search: Search[T]) -> T:
    """Run a search to its end at once."""
    while True:
        try:
            next(search)
        except StopIteration as end:
            result: T = end.value
            return result
