"""What importing the package brings along: nothing beyond FastAPI that is not used yet."""

import os
import subprocess
import sys

PROGRAM = """
import sys
import fastapi, fastapi.responses
before = set(sys.modules)
{}
print(*sorted(set(sys.modules) - before))
"""


SSE_STARLETTE = {"sse_starlette", "uvicorn", "click", "h11", "httptools", "uvloop", "watchfiles", "websockets"}
"""It imports uvicorn, which imports what it finds of its own options."""


def brought(code: str, **environment: str) -> set[str]:
    """The modules that a fresh interpreter, which has FastAPI, imports for some code."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FASTAPI_RESUMABLE_")}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(code)],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def foreign(modules: set[str]) -> set[str]:
    """The packages that are neither ours nor Python's nor what FastAPI and sse-starlette import."""
    roots = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    return (
        {root for root in roots if not root.startswith("_")}
        - SSE_STARLETTE
        - {
            "anyio",
            "fastapi",
            "fastapi_resumable",
            "pydantic",
            "pydantic_core",
            "starlette",
        }
    )


def test_the_package_imports_fastapi_and_sse_starlette_alone() -> None:
    """No Redis, no HTTP client, and no part of our own that needs one; no reader of environments for a Resumable that
    is set in code, with nothing in the environment to read."""
    modules = brought("import fastapi_resumable; fastapi_resumable.Resumable(ping=5)")
    assert "fastapi_resumable._fastapi.resumable" in modules
    assert foreign(modules) == set()
    assert not {"fastapi_resumable.stores.redis", "fastapi_resumable.client", "tests.conformance"} & modules


def test_what_reads_the_environment_is_imported_when_there_is_something_to_read() -> None:
    """One variable is enough, in small letters, too; it counts as ever."""
    for name in ("FASTAPI_RESUMABLE_PING", "fastapi_resumable_ping"):
        code = "from fastapi_resumable import Resumable; assert Resumable().settings.ping == 3"
        assert "pydantic_settings" in foreign(brought(code, **{name: "3"}))


def test_a_part_that_is_asked_for_is_imported_then() -> None:
    """`RedisStore` is a name of the package, and brings its client."""
    assert "redis" in foreign(brought("from fastapi_resumable import RedisStore"))
