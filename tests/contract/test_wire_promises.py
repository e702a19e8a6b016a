"""The list of promises and the tests that keep them belong to each other."""

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.contract.promises_4_6 import PROMISES

HERE = Path(__file__).parent
# Tests of the ground that the promises stand on, rather than of one sentence.
BESIDE = {
    "test_wire_promises.py",
    "test_wire_readers.py::test_a_client_that_only_half_closed_its_socket_reads_on",
    "test_wire_readers.py::test_a_request_that_comes_in_pieces_starts_one_stream",
    "test_wire_framing.py::test_blank_lines_between_events_dispatch_nothing",
}


def functions_in(path: Path) -> set[str]:
    """The node ids of a file's tests, without parameters."""
    functions = ast.walk(ast.parse(path.read_text("utf-8")))
    return {
        f"{path.name}::{node.name}"
        for node in functions
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


@cache
def all_tests() -> set[str]:
    paths = [*HERE.glob("test_wire_*.py"), *HERE.glob("test_http_*.py")]
    return set().union(*(functions_in(path) for path in paths if path.name not in BESIDE))


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: f"{promise[0]}: {promise[1][:50]}")
def test_every_promise_names_tests_that_exist(promise: tuple[str, str, list[str]]) -> None:
    """A sentence without a test, or with one that is gone, is no promise."""
    _, _, tests = promise
    assert tests
    assert set(tests) <= all_tests()


def test_every_test_keeps_a_promise() -> None:
    """A test of these files that no sentence asks for is either superfluous or a sentence is missing."""
    kept = {test for _, _, tests in PROMISES for test in tests}
    assert all_tests() - kept - BESIDE == set()


def test_no_sentence_is_listed_twice() -> None:
    """One place for each."""
    counts = Counter(sentence for _, sentence, _ in PROMISES)
    assert [sentence for sentence, count in counts.items() if count > 1] == []
