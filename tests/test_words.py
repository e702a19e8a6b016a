"""One vocabulary, that of docs/glossary.md, and plain English: the words that were given up do not come back."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

IDIOMS = [
    r"nobody",
    r"(is|are|be|been) told",
    r"let go( of)?",
    r"goes by",
    r"in hand",
    r"all the same[,:;.]",
    r"for ever",
    r"(as|see) above",
    r"by somebody else",
    r"(is|are|was|be) to be had",
    r"whoever",
    r"by turns",
]
"""What plain English says in other words."""

OLD = {
    "stepping": "run inline",
    "stepper": "run inline",
    "rounds": "timer",
    "pulse": "coalescing",
    "outstay": "defer the cancellation",
    "outlast": "wait until it is done",
    "graves": "ended streams",
    "nobody": "noop",
    "recall": "fetch what was evicted",
    "withdraw": "release",
    "site": "worker",
    "hurry": "skip the grace",
    "bury": "reap",
    "obey": "apply",
    "impatient": "the grace is over",
}
"""Names that no reader guessed, and what they were replaced by."""

OTHER_MEANINGS = {"cursor", "position", "abort", "kill"}
"""Words of the glossary that mean other things as well, such as the signal that kills a process."""

_IDIOM = re.compile(rf"\b({'|'.join(IDIOMS)})(?!\w)", re.IGNORECASE)
_BARE_WHO = re.compile(r"(^|[.:;(] |\n\n|\| )Who (?![^.?]*\?)[a-z]+")
"""`Who knows the id may read`: a question is no such sentence."""


def prose() -> Iterator[tuple[str, str]]:
    """All text that users read, by its place."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "fastapi_resumable").rglob("*.md")]
    for path in [*pages, *(ROOT / "example_app").rglob("*.md")]:
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    yield "CHANGELOG.md", changelog.partition("## [0.1.0]")[0]
    sources = [*(ROOT / "example_app" / "static").glob("*.js"), *(ROOT / "fastapi_resumable").rglob("*.d.ts")]
    for path in [*sources, *(ROOT / "fastapi_resumable").rglob("*.lua"), *(ROOT / ".github").glob("*.md")]:
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def code(folder: str) -> Iterator[tuple[str, str]]:
    """The comments and strings of Python, and its names with their words apart, by their place."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        place = str(path.relative_to(ROOT))
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING):
                yield f"{place}:{token.start[0]}", token.string
            elif token.type == tokenize.NAME:
                yield f"{place}:{token.start[0]}", re.sub(r"_|(?<=[a-z])(?=[A-Z])", " ", token.string)


def found(texts: Iterator[tuple[str, str]]) -> list[str]:
    """Every idiom, with its place."""
    return [
        f"{place}: {match[0].strip()}"
        for place, text in texts
        for match in [*_IDIOM.finditer(re.sub(r"\s+", " ", text)), *_BARE_WHO.finditer(text)]
    ]


def test_the_documentation_is_in_plain_english() -> None:
    """And so are the change log and the example app."""
    assert found(prose()) == []


@pytest.mark.parametrize("folder", ["fastapi_resumable", "example_app"])
def test_code_is_in_plain_english(folder: str) -> None:
    """Comments, docstrings, messages and names."""
    assert found(code(folder)) == []


def test_tests_are_named_in_plain_english() -> None:
    """A name says what the library does."""
    names = [
        (str(path.relative_to(ROOT)), name.replace("_", " "))
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
    ]
    assert found(iter(names)) == []


def test_the_documentation_uses_the_words_of_the_glossary() -> None:
    """What the glossary says not to use is used by no page, except for other tools and other things."""
    rows = re.findall(
        r"(?m)^\| ([a-z ,-]+) \| [a-z ,-]+ \|$", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    )
    avoided = [word for row in rows[1:] for word in row.split(", ") if word not in OTHER_MEANINGS]
    assert len(avoided) > 3
    pattern = re.compile(rf"\b({'|'.join(avoided)})s?\b", re.IGNORECASE)
    pages = [
        (place, text) for place, text in prose() if place not in ("docs/glossary.md", "docs/explanation/comparison.md")
    ]
    assert [f"{place}: {match[0]}" for place, text in pages for match in pattern.finditer(text)] == []


def test_old_names_are_gone() -> None:
    """Each name is one that a reader of FastAPI's or Starlette's code would guess."""
    names = [
        (place, text)
        for place, text in code("fastapi_resumable")
        if not text.startswith(("#", '"', "'", "f", "r", "b"))
    ]
    old = [f"{place}: {word}" for place, text in names for word in text.lower().split() if word in OLD]
    assert old == []
