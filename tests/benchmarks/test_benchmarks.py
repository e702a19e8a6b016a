"""The benchmarks run, in tiny sizes: what they say of speed is not looked at here."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import micro, page
from tests.benchmarks.__main__ import WORKLOADS
from tests.benchmarks.growth import MEASURES
from tests.support.server import ROOT


def run(*arguments: str) -> str:
    """What a module of the benchmarks prints."""
    result = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.redis
@pytest.mark.long
def test_the_benchmark_prints_a_row_for_each_target(tmp_path: Path) -> None:
    """Every workload runs on all its targets, and its table has all its numbers."""
    printed = run("tests.benchmarks", "--small", "--rounds", "1", "--json", str(tmp_path / "runs.json"))
    tables = re.split(r"^\*\*(.+?)\*\*: .*$", printed, flags=re.MULTILINE)[1:]
    found = dict(zip(tables[::2], tables[1::2], strict=True))
    assert list(found) == [work.name for work in WORKLOADS]
    for work in WORKLOADS:
        rows = [line.strip("| ").split(" | ") for line in found[work.name].splitlines() if line.startswith("| ")][1:]
        assert [row[0] for row in rows] == list(work.targets)
        # The last one, of Redis, may have numbers that the others have not.
        assert all(len(rows[-1]) == 1 + len(work.columns) and cell.strip() for cell in rows[-1])
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert [run["faults"] for run in runs if run["workload"] == "W6"] == [0, 0]


@pytest.mark.long
def test_growth_is_measured_in_every_direction(tmp_path: Path) -> None:
    """Each measure has points for each kind, in the order of their size."""
    run("tests.benchmarks.growth", "--small", "--json", str(tmp_path / "growth.json"))
    results = json.loads((tmp_path / "growth.json").read_text())
    assert set(results) == {"machine", *MEASURES}
    for name in MEASURES:
        for points in results[name].values():
            places = [point["x"] for point in points]
            assert places == sorted(set(places)) and places
            assert all(point["cpu"] >= 0 for point in points)


@pytest.mark.long
def test_the_hot_path_is_timed() -> None:
    """Every scenario of the micro-benchmark has a number, and so has every shape of event."""
    printed = run("tests.benchmarks.micro", "--rounds", "1", "--scale", "0.01")
    for name in micro.scenarios():
        assert re.search(rf"^{re.escape(name)} +-?[\d,]+", printed, re.MULTILINE), name
    assert re.search(r"^40 lines of data, CR LF +[\d,]+$", printed, re.MULTILINE)
    assert re.search(r"import beyond FastAPI and uvicorn: [\d.]+ ms", printed)


def test_the_page_shows_what_was_measured() -> None:
    """The tables of the page are those that the results make."""
    text = page.PAGE.read_text()
    assert page.fill(text, page.parts()) == text


def test_a_page_without_a_place_for_a_part_is_refused() -> None:
    """Nothing that was measured is left out in silence."""
    with pytest.raises(ValueError, match="0 places for 'machine'"):
        page.fill("nothing", {"machine": "x"})
