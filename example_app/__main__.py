"""`python -m example_app`: start the chat on a free port of this machine and print its URL."""

import argparse
import logging
import os
import socket

import uvicorn

from example_app.main import app

USUAL_PORT = 8000


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m example_app", description="A chat whose answers survive a reload.")
    parser.add_argument("--port", type=int, help="0 for any free port; by default $PORT, else 8000 if it is free")
    port = parser.parse_args().port
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
