"""What README and docs show is what happens."""

import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest

from .player import PAGES, ROOT, blocks, play

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUN = {"python", "console"}
SHOWN = {"caddy", "html", "ini", "javascript", "jsx", "nginx", "sql", "text", "yaml"}
"""Languages whose blocks are not run here; tests/browser runs those that have a title."""
NEEDS = re.compile(r"<!-- needs ([\w-]+) -->")
"""At the head of a page: a package that is too large, or holds other packages back, to be in the lock file."""


@pytest.mark.timeout(400)  # a page starts several programs
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.language in RUN for block in blocks(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_code_of_a_page_runs_as_shown(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python of the page runs, and all commands print what the page says they print."""
    if (needs := NEEDS.match(page.read_text())) and not any(distributions(name=needs[1])):
        pytest.skip(f"install {needs[1]} to run this page: the lock file leaves it out")
    monkeypatch.chdir(tmp_path)
    play(page, tmp_path)


def test_no_code_goes_unseen() -> None:
    """Every fence is of a language that is run, or of one that is known not to be."""
    for page in PAGES:
        found = list(blocks(page))
        assert len(re.findall(r"(?m)^ *```", page.read_text())) == 2 * len(found), page
        assert {block.language for block in found} <= RUN | SHOWN, page


def test_the_readme_leads_somewhere() -> None:
    """Its links are absolute, for a package index shows it too; those into the project lead to files that exist."""
    text = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    assert targets
    assert [target for target in targets if not target.startswith("https://")] == []
    repository = PROJECT["urls"]["Source"]
    raw = repository.replace("https://github.com", "https://raw.githubusercontent.com")
    files = [
        target.removeprefix(root)
        for target in targets
        for root in (f"{repository}/blob/main/", f"{raw}/main/")
        if target.startswith(root)
    ]
    assert len(files) > 10
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_readme_is_short() -> None:
    """It fits in a few screens."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
