"""Uses the installed wheel as a stranger would: a real server, a client that hangs up half way, and the whole answer.

Runs in an environment with nothing but the wheel and its dependencies, away from the work tree.
"""

import asyncio
import importlib
import importlib.metadata
import pkgutil
import socket
import threading
from collections.abc import AsyncIterator
from http.client import HTTPConnection
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

import fastapi_resumable
from fastapi_resumable import Resumable

EXTRAS = ("fastapi_resumable.client", "fastapi_resumable.stores.redis.", "tests.conformance")
"""What needs more than the wheel requires."""

STREAM_ID = {"X-Conversation-Id": "smoke"}


def check_contents() -> None:
    """Every module imports, the version is the wheel's; the types and the JavaScript client are shipped."""
    version = importlib.metadata.version("fastapi-resumable")
    assert fastapi_resumable.__version__ == version, (fastapi_resumable.__version__, version)
    package = Path(fastapi_resumable.__file__).parent
    assert package.is_relative_to(Path.cwd()), f"{package} is not the wheel's"
    skill = ".agents/skills/fastapi-resumable/SKILL.md"
    for file in ("py.typed", "static/resumable.js", "static/resumable.d.ts", "static/package.json", skill):
        assert (package / file).is_file(), f"{file} is missing"
    for module in pkgutil.walk_packages([str(package)], "fastapi_resumable.", onerror=lambda _: None):
        if not module.name.startswith(EXTRAS):
            importlib.import_module(module.name)
    for name, extra in (("fastapi_resumable.client", "client"), ("fastapi_resumable.stores.redis.store", "redis")):
        said = "nothing"
        try:
            importlib.import_module(name)
        except ImportError as exc:
            said = str(exc)
        assert f"fastapi-resumable[{extra}]" in said, f"{name} should have asked for its extra, and said: {said}"


def build_app(hung_up: threading.Event) -> FastAPI:
    """An app with one stream, which stops half way until its first client has gone."""
    resumable = Resumable()
    app = FastAPI()
    app.include_router(resumable.router)

    async def numbers() -> AsyncIterator[str]:
        for number in range(10):
            if number == 5:
                await asyncio.to_thread(hung_up.wait, 20)
            yield f"data: {number}\n\n"

    @app.post("/count")
    @resumable.stream
    async def count() -> StreamingResponse:
        return StreamingResponse(numbers(), media_type="text/event-stream")

    return app


def check_resume(port: int, hung_up: threading.Event) -> None:
    """A client reads the first event and leaves; the replay has all ten."""
    first = HTTPConnection("127.0.0.1", port, timeout=20)
    first.request("POST", "/count", headers=STREAM_ID)
    response = first.getresponse()
    assert response.status == 200, response.status
    assert response.readline() == b"data: 0\n"
    replay_url = response.headers["Content-Location"]
    response.close()
    first.close()
    hung_up.set()

    second = HTTPConnection("127.0.0.1", port, timeout=20)
    second.request("GET", replay_url)
    body = second.getresponse().read()
    second.close()
    data = [line for line in body.splitlines() if line.startswith(b"data: ")]
    assert data == [b"data: %d" % number for number in range(10)], body


def main() -> None:
    """Run the checks."""
    check_contents()
    hung_up = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(build_app(hung_up), log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            check_resume(listener.getsockname()[1], hung_up)
        finally:
            server.should_exit = True
            thread.join(timeout=20)
    assert not thread.is_alive(), "the server did not stop"
    print(f"The wheel of fastapi-resumable {fastapi_resumable.__version__} works.")


if __name__ == "__main__":
    main()
