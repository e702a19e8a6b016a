"""Imports point one way: each layer imports only those above it (the order of LAYERS)."""

import ast
import re
from pathlib import Path

import fastapi_resumable

PACKAGE = Path(fastapi_resumable.__file__).parent
LAYERS = ["core", "stores", "life", "asgi", "api", "client"]


def imported(path: Path) -> set[str]:
    """The layers that a module imports, type checking aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_no_layer_imports_one_below_it():
    """core, stores, life, asgi, api, client: arrows point up only."""
    for index, layer in enumerate(LAYERS):
        for path in (PACKAGE / layer).glob("*.py"):
            assert imported(path) <= set(LAYERS[:index]), path


def test_the_suite_for_stores_stands_beside_the_layers_that_it_tests():
    """It knows the stores and what reads them; nothing of the library knows it, nor pytest."""
    for path in (PACKAGE / "testing").glob("*.py"):
        assert imported(path) <= {"core", "stores", "life"}, path
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "testing":
            assert "testing" not in imported(path), path
            assert "import pytest" not in path.read_text(encoding="utf-8"), path


def test_the_client_imports_nothing_of_the_server():
    """Of the library it needs the core alone, and no framework."""
    framework = re.compile(r"^\s*(?:import|from) (?:starlette|fastapi|uvicorn)\b", re.MULTILINE)
    for path in (PACKAGE / "client").glob("*.py"):
        assert imported(path) <= {"core"}, path
        assert not framework.search(path.read_text(encoding="utf-8")), path


def test_the_core_imports_neither_asyncio_nor_a_framework():
    """Pure: the standard library without asyncio, and pydantic for the models."""
    for path in (PACKAGE / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            else:
                continue
            roots = {module.partition(".")[0] for module in modules}
            assert not roots & {"asyncio", "anyio", "starlette", "fastapi", "time"}


def test_all_names_everything_that_is_public_once_and_sorted():
    """`__all__` is what the top level offers."""
    names = fastapi_resumable.__all__

    assert names == sorted(set(names))
    assert all(hasattr(fastapi_resumable, name) for name in names)
