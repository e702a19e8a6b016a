"""`python -m example_app`: start the chat on a free port of this machine and print its URL."""

import argparse
import logging
import os
import socket
from pathlib import Path

import uvicorn

USUAL_PORT = 8000
FOLDER = Path(__file__).parents[1] / ".cache" / "example-app"
"""Where streams and conversations are kept, so that they outlive a restart."""


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m example_app", description="A chat whose answers survive a reload.")
    parser.add_argument("--port", type=int, help="0 for any free port; by default $PORT, else 8000 if it is free")
    parser.add_argument("--memory", action="store_true", help="keep everything in memory, until the app ends")
    arguments = parser.parse_args()
    port = arguments.port
    if not arguments.memory:
        keep_on_disk()
    from example_app.main import app  # noqa: PLC0415  # it reads the environment, which is only set now

    if port is None and os.environ.get("PORT"):
        port = int(os.environ["PORT"])

    logging.basicConfig(level=logging.INFO, format="%(levelname)s:     %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with listen_anywhere() if port is None else listen(port) as listener:
        port = listener.getsockname()[1]
        url = f"http://127.0.0.1:{port}/"
        print(
            f"\n  The chat is running on {url}  (Ctrl-C stops it)\n  Plots for its operator: {url}operations\n",
            flush=True,
        )
        uvicorn.Server(uvicorn.Config(app, headers=signature())).run(sockets=[listener])


def keep_on_disk() -> None:
    """Choose SQLite for the streams and the conversations, where the environment does not say otherwise."""
    folder = Path(os.environ.get("EXAMPLE_FOLDER", FOLDER))
    if "FASTAPI_RESUMABLE_STORE" not in os.environ:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["FASTAPI_RESUMABLE_STORE"] = f"sqlite:///{folder / 'streams.db'}"
        os.environ.setdefault("EXAMPLE_DATABASE", str(folder / "conversations.db"))


def signature() -> list[tuple[str, str]]:
    """What every response says if this is one of several workers: which one has sent it."""
    worker = os.environ.get("EXAMPLE_WORKER")
    return [("X-Worker", worker)] if worker else []


def listen_anywhere() -> socket.socket:
    """Take the usual port, so that the browser finds its conversations again; if it is in use, any free one."""
    try:
        return listen(USUAL_PORT)
    except OSError:
        return listen(0)


def listen(port: int) -> socket.socket:
    """Listen on one port. From here on the kernel accepts connections, so the URL works as soon as it is printed."""
    return socket.create_server(("127.0.0.1", port), backlog=2048)


if __name__ == "__main__":
    main()
