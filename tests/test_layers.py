"""Imports point one way: each layer imports only those above it (the order of LAYERS), type checking included."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import fastapi_resumable

PACKAGE = Path(fastapi_resumable.__file__).parent
LAYERS = ["_core", "_stream", "stores", "_run", "_fastapi"]
SHARED = {"exceptions", "models", "settings", "telemetry"}
"""Modules of the top level that every layer may import."""


def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name below it."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(name: str) -> set[str]:
    """The modules of the package that a module imports at its top level or for type checking."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                candidate = f"{target}.{alias.name}".strip(".")
                names.add(candidate if candidate in MODULES else target)
    return names


def layer_of(name: str) -> str:
    return name.partition(".")[0]


def test_no_layer_imports_one_below_it():
    """_core, _stream, stores, _run, _fastapi: arrows point up only."""
    for name in MODULES:
        if (layer := layer_of(name)) in LAYERS:
            allowed = set(LAYERS[: LAYERS.index(layer) + 1]) | SHARED
            assert {layer_of(other) for other in imported(name)} <= allowed, name


def test_the_client_imports_nothing_of_the_server():
    """Of the library it needs the core alone, and no framework."""
    framework = re.compile(r"^\s*(?:import|from) (?:starlette|fastapi|uvicorn)\b", re.MULTILINE)
    for name, path in MODULES.items():
        if layer_of(name) == "client":
            assert {layer_of(other) for other in imported(name)} <= {"client", "_core"} | SHARED, name
            assert not framework.search(path.read_text(encoding="utf-8")), name


def test_the_core_imports_neither_asyncio_nor_a_framework():
    """Pure: the standard library without asyncio, and pydantic for the models."""
    for name, path in MODULES.items():
        if layer_of(name) not in {"_core", "exceptions", "models"}:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imports = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imports = [node.module or ""]
            else:
                continue
            roots = {module.partition(".")[0] for module in imports}
            assert not roots & {"asyncio", "anyio", "starlette", "fastapi", "time"}, name


def test_no_imports_go_in_a_circle():
    """Those for type checking count as well."""
    graph = {name: imported(name) - {name} for name in MODULES}
    TopologicalSorter(graph).prepare()


def test_nothing_of_the_package_imports_the_tests():
    """Nor pytest: the conformance suite for stores stays out of the wheel."""
    for path in MODULES.values():
        assert not re.search(r"^\s*(?:import|from) (?:pytest|tests)\b", path.read_text(encoding="utf-8"), re.MULTILINE)


def test_all_names_everything_that_is_public_once_and_sorted():
    """`__all__` is what the top level offers."""
    names = fastapi_resumable.__all__

    assert names == sorted(set(names))
    assert all(hasattr(fastapi_resumable, name) for name in names)
    assert set(names) <= set(dir(fastapi_resumable))


def test_modules_and_functions_fit_on_a_few_screens() -> None:
    """300 lines, and 40."""
    long = []
    for name, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        long += [name] * (len(text.splitlines()) > 300)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                long += [f"{name}:{node.name}"] * (node.end_lineno - node.lineno >= 40)
    assert long == []
