"""The sentences in promises/*.md, and the tests that keep them, belong to each other."""

import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TEST = re.compile(r"(?m)^ *(?:async )?def (test_\w+)\(")
LINE = re.compile(r"- (?P<sentence>\S.*)|  - (?P<test>\S+::\S+)|  (?P<more>\S.*)|#+ .*|")


def promises() -> list[tuple[str, list[str]]]:
    """Every sentence, with the tests that are listed below it."""
    found: list[tuple[str, list[str]]] = []
    for page in sorted((TESTS / "contract/promises").glob("*.md")):
        for line in page.read_text("utf-8").splitlines():
            match = LINE.fullmatch(line)
            assert match, f"{page.name}: {line}"
            if match["sentence"]:
                found.append((match["sentence"], []))
            elif match["more"]:
                sentence, tests = found.pop()
                found.append((f"{sentence} {match['more']}", tests))
            elif match["test"]:
                found[-1][1].append(match["test"])
    return found


PROMISES = promises()


@cache
def names_in(path: Path) -> set[str]:
    """The node ids of a file's tests, below tests/ and without parameters."""
    text = path.read_text("utf-8") if path.is_file() else ""
    return {f"{path.relative_to(TESTS)}::{name}" for name in TEST.findall(text)}


def test_every_promise_names_tests_that_exist() -> None:
    """A sentence without a test, or with one that is gone, is no promise."""
    assert [sentence for sentence, tests in PROMISES if not tests] == []
    names = {test for _, tests in PROMISES for test in tests}
    assert [name for name in names if name not in names_in(TESTS / name.partition("::")[0])] == []


def test_no_promise_is_listed_twice() -> None:
    """One place for each."""
    sentences = [sentence for sentence, _ in PROMISES]
    assert [sentence for sentence in set(sentences) if sentences.count(sentence) > 1] == []


@pytest.mark.parametrize("folder", ["contract", "servers"])
def test_every_test_of_the_contract_keeps_a_promise(folder: str) -> None:
    """One that no sentence asks for is either superfluous, or a sentence is missing."""
    kept = {test for _, tests in PROMISES for test in tests}
    files = set((TESTS / folder).glob("test_*.py")) - {Path(__file__)}
    assert sorted(set().union(*map(names_in, files)) - kept) == []
