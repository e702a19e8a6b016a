"""What users write is understood by the type checkers that they use, and their mistakes are found."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)  # on a busy machine

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FILES = ("app.py", "mistakes.py")
CHECKERS = {
    "mypy": [],  # as strict as the project's own settings, and with what it has kept of its last run
    "pyright": ["--pythonpath", sys.executable],
    "ty": ["check", "--python", sys.prefix, "--output-format", "concise"],
}


@pytest.fixture(scope="module", params=CHECKERS)
def refused(request: pytest.FixtureRequest) -> dict[str, set[int]]:
    """The numbers of the lines that a type checker refuses, by file."""
    checker = request.param
    pytest.importorskip(checker)
    command = [sys.executable, "-m", checker, *CHECKERS[checker], *(str(HERE / file) for file in FILES)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    text = said.stdout + said.stderr
    assert said.returncode in (0, 1), text
    print(text)  # noqa: T201  # shown with a test that fails
    found = re.findall(r"(\w+\.py):(\d+):(?:\d+:?)? .*error", text)
    return {name: {int(number) for file, number in found if file == name} for name in FILES}


def test_what_users_write_is_understood(refused: dict[str, set[int]]) -> None:
    """Every face, store and hook; decorators and handles keep the type that they were given."""
    assert not refused["app.py"]


def test_mistakes_are_found(refused: dict[str, set[int]]) -> None:
    """A wrong keyword, value or argument."""
    lines = (HERE / "mistakes.py").read_text().splitlines()
    assert refused["mistakes.py"] == {number for number, line in enumerate(lines, 1) if line.endswith("# mistake")}
