"""What users write is understood by the type checkers that they use, and their mistakes are found."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)  # on a busy machine

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CHECKERS = {
    "mypy": ["--strict", "--python-executable", sys.executable],
    "pyright": ["--pythonpath", sys.executable],
    "ty": ["check", "--python", sys.prefix, "--output-format", "concise"],
}


def lines_refused(checker: str, file: str) -> tuple[set[int], str]:
    """The numbers of the lines that a type checker refuses, and all that it says."""
    pytest.importorskip(checker)
    command = [sys.executable, "-m", checker, *CHECKERS[checker], str(HERE / file)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    text = said.stdout + said.stderr
    assert said.returncode in (0, 1), text
    found = re.findall(rf"{re.escape(file)}:(\d+):(?:\d+:?)? .*error", text)
    return set(map(int, found)), text


@pytest.mark.parametrize("checker", CHECKERS)
def test_what_users_write_is_understood(checker: str) -> None:
    """Every face, store and hook; decorators and handles keep the type that they were given."""
    refused, text = lines_refused(checker, "app.py")
    assert not refused, text


@pytest.mark.parametrize("checker", CHECKERS)
def test_mistakes_are_found(checker: str) -> None:
    """A wrong keyword, value or argument."""
    refused, text = lines_refused(checker, "mistakes.py")
    lines = (HERE / "mistakes.py").read_text().splitlines()
    assert refused == {number for number, line in enumerate(lines, 1) if line.endswith("# mistake")}, text
