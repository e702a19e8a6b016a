"""The tables of the reference say what the code says."""

import inspect
import re

import pytest

import fastapi_resumable
from fastapi_resumable import Resumable, ResumableError, ResumableSettings, ResumableStatus

from .player import ROOT

REFERENCE = ROOT / "docs" / "reference"


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the tables under a heading, without code marks and table heads."""
    section = (REFERENCE / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `") or re.match(r"\| \d", line)]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]


def all_errors(of: type[ResumableError] = ResumableError) -> list[type[ResumableError]]:
    """Every class of error below `of`."""
    return [each for child in of.__subclasses__() for each in (child, *all_errors(child))]


def test_every_setting_is_listed_with_its_default_and_its_variable() -> None:
    """The table of settings is that of `ResumableSettings`, in the order of the code; `store` is an object's."""
    listed = {row[0]: (row[1], row[2]) for row in rows("settings.md", "All others")}
    shown = {None: "no limit", True: "true", False: "false"}
    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in ResumableSettings.model_fields.items()
        if name != "store"
    }
    assert listed == {
        name: (
            f"FASTAPI_RESUMABLE_{name.upper()}",
            shown[default]
            if default is None or isinstance(default, bool)
            else f"{default:g}"
            if isinstance(default, float)
            else str(default),
        )
        for name, default in defaults.items()
    }


def test_every_keyword_is_listed() -> None:
    """No keyword of `Resumable` is missing from the page, and none is made up."""
    listed = [row[0] for heading in ("Ids, owners and the store", "All others") for row in rows("settings.md", heading)]
    assert sorted(listed) == sorted(set(inspect.signature(Resumable).parameters))


@pytest.mark.parametrize(("page", "status", "code"), [("http.md", 0, 1), ("api.md", 1, 2)])
def test_every_error_is_listed(page: str, status: int, code: int) -> None:
    """The tables of errors have each status and code that there is, and no other."""
    listed = {(number, row[code]) for row in rows(page, "Errors") for number in re.findall(r"\d{3}", row[status])}
    raised = [error for error in all_errors() if error.code and error.status_code]  # not the bases of the clients' own
    assert listed == {(str(error.status_code), error.code) for error in raised}


def test_everything_public_is_in_the_reference() -> None:
    """Each name of the package is on the Python page."""
    page = (REFERENCE / "api.md").read_text()
    assert [name for name in fastapi_resumable.__all__ if name not in page] == []


def test_every_status_is_in_the_glossary() -> None:
    """A reader who meets a status finds out what it means."""
    glossary = (ROOT / "docs" / "glossary.md").read_text()
    assert [status for status in ResumableStatus if f"`{status}`" not in glossary] == []
