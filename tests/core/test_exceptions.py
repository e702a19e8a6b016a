"""What all exceptions of the library have in common."""

import copy
import pickle

import pytest

from fastapi_resumable import exceptions

MADE = [
    exceptions.StreamNotFound(),
    exceptions.OffsetLost(5),
    exceptions.OffsetOutOfRange(7),
    exceptions.InvalidRequest("wrong", hint="x"),
    exceptions.ConnectionLost("gone"),
    exceptions.RequestRefused(404, "stream_not_found", "gone", {"tail": 3}, "a note"),
    exceptions.StreamFailed("producer_failed", "it failed"),
    exceptions.StreamCancelled("replaced", "a newer one"),
]


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_an_exception_survives_the_way_to_another_process(error):
    """A pool of processes pickles what its functions raise, and breaks if it cannot be made again."""
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert (str(again), vars(again)) == (str(error), vars(error))
