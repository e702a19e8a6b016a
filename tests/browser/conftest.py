"""A real Chromium, and the example app under a real uvicorn."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, expect, sync_playwright

from tests.browser.chat import Model
from tests.browser.fake_openai import API_KEY
from tests.support.server import Server, serve

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium-headless-shell") or "/usr/bin/chromium"
"""By default the build without windows, which takes a third of the CPU."""
ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
]
PATIENCE = 45_000
"""Milliseconds that the browser may take for anything: a bound, not an expectation."""
WORDS_PER_SECOND = "100"
"""The pace of the built-in writer: three seconds for its longest answer."""

expect.set_options(timeout=PATIENCE)


@contextmanager
def example_app(env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run `python -m example_app` on a free port until the block ends."""
    quick = {"EXAMPLE_WORDS_PER_SECOND": WORDS_PER_SECOND, "FASTAPI_RESUMABLE_SHUTDOWN_GRACE": "0.1"}
    unset = {"OPENAI_BASE_URL": "", "OPENAI_API_KEY": "", "OPENAI_MODEL": ""}
    with TemporaryDirectory(prefix="example-app-") as folder:
        environment = {**unset, **quick, "EXAMPLE_FOLDER": folder, **(env or {})}
        server = Server([sys.executable, "-m", "example_app", "--port", "0"], environment)
        try:
            server.wait_ready()
            yield server
            assert server.stop() in (0, -signal.SIGTERM), server.output
        finally:
            server.kill()


@pytest.fixture(scope="package")
def model() -> Iterator[Model]:
    """A language model that writes when it is told to, so that a test decides what is written when."""
    with serve("tests.browser.fake_openai:app", ready="/journal") as server:
        yield Model(server)


@pytest.fixture(scope="package")
def app(model: Model) -> Iterator[Server]:
    """The example app, with that language model behind it."""
    env = {"OPENAI_BASE_URL": f"{model.url}/v1", "OPENAI_API_KEY": API_KEY, "OPENAI_MODEL": "fake-model"}
    with example_app(env) as server:
        yield server


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """The browser. For this folder only: while it runs, no test in this process can start an event loop."""
    if not Path(CHROMIUM).is_file():
        pytest.fail(f"There is no Chromium at {CHROMIUM}: apt-get install chromium-headless-shell, or set $CHROMIUM.")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        except Error as error:
            pytest.fail(f"Chromium at {CHROMIUM} does not start: {error}")
        yield browser
        browser.close()


@pytest.fixture
def person(chromium: Browser) -> Iterator[BrowserContext]:
    """Somebody with a browser of their own; no script of a page of theirs may fail."""
    failures: list[str] = []
    # A motion that lasts, like a spinner, keeps a core busy where there is no GPU.
    context = chromium.new_context(reduced_motion="reduce")
    context.set_default_timeout(PATIENCE)
    context.on("weberror", lambda error: failures.append(str(error.error)))
    yield context
    # Before the end, which fails whatever a page has still under way.
    failed = list(failures)
    context.close()
    assert failed == []


@pytest.fixture
def open_tab(person: BrowserContext, app: Server) -> Callable[..., Page]:
    """Open a tab on the example app."""

    def open_tab(address: str = "/") -> Page:
        tab = person.new_page()
        tab.goto(app.url + address)
        return tab

    return open_tab
