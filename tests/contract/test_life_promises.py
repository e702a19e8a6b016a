"""The sentences of §2 and §5 and the tests that keep them belong to each other."""

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.contract.promises_2_5 import PROMISES

HERE = Path(__file__).parent


@cache
def all_tests() -> set[str]:
    """The node ids of the tests that these sentences may name, without parameters."""
    paths = [*HERE.glob("test_faces_*.py"), *HERE.glob("test_life_*.py"), *(HERE.parent / "servers").glob("test_*.py")]
    return {
        f"{path.name}::{node.name}"
        for path in paths
        if path.name != Path(__file__).name
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: f"{promise[0]}: {promise[1][:50]}")
def test_every_promise_names_tests_that_exist(promise: tuple[str, str, list[str]]) -> None:
    """A sentence without a test, or with one that is gone, is no promise."""
    _, _, tests = promise
    assert tests
    assert set(tests) - all_tests() == set()


def test_every_test_keeps_a_promise() -> None:
    """A test of these files that no sentence asks for is either superfluous or a sentence is missing."""
    kept = {test for _, _, tests in PROMISES for test in tests}
    assert all_tests() - kept == set()


def test_no_sentence_is_listed_twice() -> None:
    """One place for each."""
    counts = Counter(sentence for _, sentence, _ in PROMISES)
    assert [sentence for sentence, count in counts.items() if count > 1] == []
