"""What README and docs show is what happens."""

import re
from pathlib import Path

import pytest

from .player import PAGES, ROOT, blocks, play

LANGUAGES = {"python", "console", "text", "json", "http", "javascript", "nginx", "caddy", "ini"}
PLAYED = [page for page in PAGES if any(block.language in ("python", "console") for block in blocks(page))]


@pytest.mark.parametrize("page", PLAYED, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs_as_shown(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python of the page runs, and all commands print what the page says they print."""
    play(page, tmp_path, monkeypatch)
