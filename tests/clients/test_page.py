"""The page about clients says what was tested."""

import json
import re
import subprocess

import pytest
from packaging.version import Version

from tests.browser.conftest import CHROMIUM
from tests.clients.lines import PAGE
from tests.docs.player import blocks
from tests.support.server import ROOT

ROW = re.compile(r"^\| `([^`]+)`(?: \((npm|PyPI)\)(?:, [^|]+)?)? \| (?:Chromium )?([\d.]+) \|", re.MULTILINE)
VERSIONS = {(where, name): version for name, where, version in ROW.findall(PAGE.read_text())}


def test_the_page_has_all_clients() -> None:
    """One row each, with a version."""
    assert len(VERSIONS) == 16


def test_the_versions_of_npm_packages_are_those_of_the_lock_file() -> None:
    """Who updates a package looks at its row."""
    packages = json.loads((ROOT / "tests/javascript/package-lock.json").read_text())["packages"]
    listed = {name: version for (where, name), version in VERSIONS.items() if where == "npm"}
    assert listed == {name: packages[f"node_modules/{name}"]["version"] for name in listed}


def test_the_versions_of_python_packages_are_those_of_the_lock_file() -> None:
    """The same for PyPI."""
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements/dev.txt").read_text(), re.MULTILINE))
    listed = {name: version for (where, name), version in VERSIONS.items() if where == "PyPI"}
    assert listed == {name: pins[name] for name in listed}


@pytest.mark.parametrize(
    ("name", "program"),
    [pytest.param("EventSource", CHROMIUM, marks=pytest.mark.browser), ("curl", "curl")],
)
def test_programs_of_the_system_are_as_new_as_the_page_says(name: str, program: str) -> None:
    """No lock fixes these: where the tests run, they are those versions or newer."""
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r"\d+\.[\d.]+", shown)
    assert found and Version(found[0]) >= Version(VERSIONS["", name])


def test_the_code_on_the_page_is_the_code_that_was_tested() -> None:
    """Each loop stands word for word in a test; `main.py` and the commands are run with all the pages."""
    folders = ["tests/clients", "tests/browser", "tests/javascript/clients"]
    tests = [" ".join(path.read_text().split()) for folder in folders for path in (ROOT / folder).glob("*.*")]
    shown = [block.code for block in blocks(PAGE) if block.language != "console" and block.title != "main.py"]
    assert len(shown) == 6
    for code in shown:
        without_imports = " ".join(re.sub(r"(?m)^(?:import|from) .*$", "", code).split())
        assert any(without_imports in test for test in tests), code


def test_the_lock_file_names_no_registry() -> None:
    """Each machine installs from the registry it is configured for."""
    lock = (ROOT / "tests/javascript/package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert "registry" not in lock
