"""The application of a page of the documentation, as the page shows it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.browser.chat import Model
from tests.browser.fake_openai import API_KEY
from tests.docs.player import ROOT, blocks
from tests.support.server import HOST, Server

JAVASCRIPT = ROOT / "tests" / "javascript"

# In the place of the page's stand-in: a model that writes when it is told to.
MODEL = """
import os

import openai

client = openai.AsyncOpenAI()


async def answer(question):
    if question == "Fail.":
        raise RuntimeError("as the test says")
    message = {"role": "user", "content": question}
    chunks = await client.chat.completions.create(model="fake-model", messages=[message], stream=True)
    async for chunk in chunks:
        yield chunk.choices[0].delta.content
"""


@contextmanager
def serve_page(page: str, folder: Path, model: Model, module: str = "main") -> Iterator[Server]:
    """The application of a page on its real server, with a model that writes when it is told to."""
    for block in blocks(ROOT / "docs" / "how-to" / f"{page}.md"):
        if block.title:
            (folder / block.title).parent.mkdir(exist_ok=True)
            (folder / block.title).write_text(block.code)
        if "npx esbuild" in block.code:
            bundle(folder, block.code)
    (folder / "model.py").write_text(MODEL)
    env = {"OPENAI_BASE_URL": f"{model.url}/v1", "OPENAI_API_KEY": API_KEY, "FASTAPI_RESUMABLE_SHUTDOWN_GRACE": "0.1"}
    uvicorn = [sys.executable, "-m", "uvicorn", f"{module}:app", "--host", HOST, "--port", "0"]
    server = Server(uvicorn, env, cwd=folder)
    try:
        server.wait_ready()
        yield server
    finally:
        server.kill()


def bundle(folder: Path, commands: str) -> None:
    """Run the page's `npx esbuild`."""
    modules = JAVASCRIPT / "node_modules"
    if not modules.is_dir():
        pytest.fail("The npm packages are missing: run `make js` first.")
    [command] = [line.removeprefix("$ npx ") for line in commands.splitlines() if "npx esbuild" in line]
    environ = {**os.environ, "NODE_PATH": str(modules), "PATH": f"{modules / '.bin'}{os.pathsep}{os.environ['PATH']}"}
    node = ["bash", str(ROOT / "tools" / "node"), "bash", "-c", command]
    subprocess.run(node, cwd=folder, env=environ, check=True, timeout=240)
