"""Plays the code blocks of a Markdown page, in the order in which a reader meets them.

- A `python` block runs in the page's namespace. One with `title="main.py"` becomes that module, in a file in a folder
  of the page. It runs where a block after it imports it or a server serves it, or else at the end of the page.
  `<!-- needs fastapi 0.135 -->` above it says what it is for.
- In a `console` block, a line that starts with `$ ` is a command, and what follows is what it prints. `uvicorn` starts
  a real server on a free port, which takes the place of `localhost:8000` from there on, and `redis-server` one that
  takes the place of `localhost:6379`. `docker`, `pip`, `make`, `npm` and `npx` are not run.

Two things differ from run to run. An epoch in the page stands for the one that the server chose, each for the same one
all through the page, in commands too; and Unix times and durations stand for any. Where a page starts four workers,
here are two.
"""

import difflib
import importlib
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from packaging.version import Version

from tests.support.redis_server import RedisServer
from tests.support.server import HOST, Server

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = ("docker", "pip", "make", "npm", "npx")
DEADLINE = 150

_BLOCK = re.compile(
    r"""
    (?:<!--\ needs\ fastapi\ (?P<needs>[\d.]+)\ -->\n)?
    ^(?P<indent>\ *)```(?P<language>\w*)(?P<options>[^\n]*)\n
    (?P<code>.*?)
    ^(?P=indent)```$
    """,
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
_VARIABLE = re.compile(r"[A-Z_]+=")
_EPOCH = re.compile(r"\b[a-z2-7]{16}\b(?=-\d|\"|$)", re.MULTILINE)
_VARIES = [
    (re.compile(r"\b1[789]\d{8}\b"), "<time>"),
    (re.compile(r"\bin \d+\.\d+s"), "in <time>"),
]


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    language: str
    title: str
    code: str
    line: int
    """The line of the page on which the code begins, counted from 1."""
    needs: str


def blocks(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page."""
    text = page.read_text()
    for match in _BLOCK.finditer(text):
        title = re.search(r'title="([^"]+)"', match["options"])
        yield Block(
            language=match["language"],
            title=title[1] if title else "",
            code=re.sub(f"(?m)^{match['indent']}", "", match["code"]),
            line=text.count("\n", 0, match.start("code")) + 1,
            needs=match["needs"] or "0",
        )


class Player:
    """Runs the blocks of one page in a folder of their own."""

    def __init__(self, page: Path, folder: Path) -> None:
        self._page = page
        self._folder = folder
        self._namespace: dict[str, object] = {"__name__": "page"}
        self._modules: dict[str, ModuleType | None] = {}
        """What `sys.modules` held under the names of the page's modules."""
        self._unused: set[str] = set()
        """The page's modules that nothing has run yet: their packages may take seconds to import."""
        sys.path.insert(0, str(folder))
        self._server: Server | None = None
        self._redis: RedisServer | None = None
        self._epochs: dict[str, str] = {}

    def play(self, block: Block) -> None:
        """Run one block."""
        if Version(version("fastapi")) < Version(block.needs):
            return
        if block.language == "python":
            self._run_python(block)
        elif block.language == "console":
            for command, output in _commands(block.code):
                self._run_command(command, output)

    def close(self) -> None:
        """Stop the servers, and forget the page's modules: the next page may have a `main.py` too."""
        self._stop_server()
        if self._redis is not None:
            self._redis.__exit__(None, None, None)
        sys.path.remove(str(self._folder))
        for name, module in self._modules.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module

    def run_unused(self, names: Iterable[str] | None = None) -> None:
        """Run the modules, all by default, that no block or command of the page has run."""
        for name in self._unused & set(self._unused if names is None else names):
            importlib.import_module(name)

    def _run_python(self, block: Block) -> None:
        # Line numbers as in the page, so that a traceback points there.
        text = self._at_home(block.code)
        code = compile("\n" * (block.line - 1) + text, str(self._page), "exec", dont_inherit=True)
        if not block.title:
            exec(code, self._namespace)
            return
        name = Path(block.title).stem
        self.run_unused([name])
        (self._folder / block.title).write_text(text)
        self._modules.setdefault(name, sys.modules.get(name))
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        self._unused.add(name)

    def _run_command(self, command: str, expected: str) -> None:
        command = self._at_home(command)
        self._unused -= set(re.findall(r"\w+", command))
        words = shlex.split(command, comments=True)
        variables = dict(word.split("=", 1) for word in itertools.takewhile(_VARIABLE.match, words))
        program, *arguments = words[len(variables) :]
        if program in NOT_RUN:
            return
        if program == "uvicorn":
            self._start_server(arguments, variables)
            return
        if program == "redis-server":
            assert self._redis is None, "the page starts Redis twice"
            (self._folder / "redis").mkdir()
            self._redis = RedisServer(self._folder / "redis", *arguments)
            return
        for shown, real in self._epochs.items():
            command = command.replace(shown, real)
        if "localhost:8000" in command:
            assert self._server is not None, f"{command}: the page has not started a server"
            command = command.replace("localhost:8000", f"{HOST}:{self._server.port}")
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self._folder,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.stderr == "", f"{command}: {done.stderr}"
        shown, printed = self._comparable(expected, done.stdout), self._comparable(done.stdout)
        difference = "\n".join(difflib.unified_diff(shown, printed, "the page", "the command", lineterm=""))
        assert not difference, f"{command}\n{difference}"

    def _at_home(self, text: str) -> str:
        """Text that means the page's own Redis, where there is one."""
        if self._redis is None:
            return text
        text = text.replace("localhost:6379", f"{HOST}:{self._redis.port}")
        return re.sub(r"\bredis-cli\b", f"redis-cli -p {self._redis.port}", text)

    @property
    def _environ(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # A plugin that comes with one of the peers, and takes a second to import: see pyproject.toml.
        pytest = {"PYTEST_ADDOPTS": "-p no:langsmith_plugin"}
        return {**os.environ, **pytest, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}

    def _start_server(self, arguments: list[str], variables: dict[str, str]) -> None:
        self._stop_server()
        fewer = ["2" if argument == "4" else argument for argument in arguments]
        server = [sys.executable, "-m", "uvicorn", *fewer, "--host", HOST, "--port", "0"]
        self._server = Server(server, variables, cwd=self._folder)
        self._server.wait_ready()

    def _stop_server(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def _comparable(self, shown: str, real: str | None = None) -> list[str]:
        """The lines of `shown`, with what differs from run to run replaced; epochs by those of the `real` output."""
        if real is not None:
            for ours, theirs in zip(_EPOCH.findall(shown), _EPOCH.findall(real), strict=False):
                self._epochs.setdefault(ours, theirs)
            for ours, theirs in self._epochs.items():
                shown = shown.replace(ours, theirs)
        for pattern, replacement in _VARIES:
            shown = pattern.sub(replacement, shown)
        return shown.strip("\n").splitlines()


def _commands(code: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with what it prints."""
    for part in re.split(r"(?m)^\$ ", code)[1:]:
        command, newline, output = re.sub(r"\\\n *", "", part).partition("\n")
        yield command, output if newline else ""


def play(page: Path, folder: Path) -> None:
    """Run all blocks of a page."""
    player = Player(page, folder)
    try:
        for block in blocks(page):
            player.play(block)
        player.run_unused()
    finally:
        player.close()
