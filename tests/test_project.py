"""The project's own files agree with each other."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import fastapi_resumable

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEPENDENCIES = [Requirement(line) for line in PROJECT["project"]["dependencies"]]


def pins(name: str) -> dict[str, Version]:
    """The versions that a file in requirements/ fixes."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return {package: Version(version) for package, version in re.findall(r"^([a-z0-9._-]+)==(\S+)", text, re.MULTILINE)}


def group(name: str) -> list[Requirement]:
    """The requirements of a dependency group, with those of the groups it includes."""
    found: list[Requirement] = []
    for entry in PROJECT["dependency-groups"][name]:
        found += group(entry["include-group"]) if isinstance(entry, dict) else [Requirement(entry)]
    return found


@pytest.mark.parametrize(("name", "groups"), [("dev", ["dev"]), ("demo", ["demo"]), ("lowest", ["tests"])])
def test_pinned_versions_are_within_the_declared_ranges(name: str, groups: list[str]) -> None:
    """`make lock` was run after the last change of a dependency."""
    pinned = pins(name)
    for requirement in DEPENDENCIES + [each for one in groups for each in group(one)]:
        assert pinned[requirement.name] in requirement.specifier, str(requirement)


def test_the_lowest_versions_are_the_declared_ones() -> None:
    """What `make test-low` runs on is the floor that pyproject.toml promises."""
    pinned = pins("lowest")
    for requirement in DEPENDENCIES:
        floors = [Version(each.version) for each in requirement.specifier if each.operator == ">="]
        assert floors == [pinned[requirement.name]], str(requirement)


def test_pinned_files_name_no_index() -> None:
    """Each machine installs from the index it is configured for."""
    for path in (ROOT / "requirements").glob("*.txt"):
        assert "://" not in path.read_text(), path.name
        assert "--index" not in path.read_text(), path.name


def test_the_changelog_knows_the_version() -> None:
    """The version in the package is released in the changelog, or named under Unreleased."""
    assert fastapi_resumable.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_every_page_of_the_documentation_is_in_its_navigation() -> None:
    """No page is unreachable, and no entry leads nowhere."""
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    listed = set(re.findall(r"[\w/-]+\.md", navigation))
    docs = ROOT / "docs"
    assert listed == {str(page.relative_to(docs)) for page in docs.rglob("*.md")}


def test_the_skill_for_agents_is_short_and_true() -> None:
    """Its code runs, and every attribute of `resumable` that it names is there."""
    text = (ROOT / "fastapi_resumable/.agents/skills/fastapi-resumable/SKILL.md").read_text()
    assert text.startswith("---\nname: fastapi-resumable\ndescription: ")
    assert len(text.splitlines()) <= 80
    namespace: dict[str, object] = {"__name__": "skill"}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, namespace)
    resumable = namespace["resumable"]
    assert [name for name in re.findall(r"\bresumable\.(?!js\b)(\w+)", text) if not hasattr(resumable, name)] == []


def test_the_package_leads_to_its_documentation_and_its_source() -> None:
    """What an index shows beside the readme."""
    assert {"Documentation", "Source", "Issues", "Changelog"} <= set(PROJECT["project"]["urls"])
