"""Whether this process is one of several workers, so that what it keeps in memory is not there for the others."""

import logging
import os
import re
import sys
from pathlib import Path

logger = logging.getLogger("fastapi_resumable")

ADVICE = (
    "MemoryStore keeps streams in this process, which is one of %s workers: a request that another worker gets finds "
    "none of them. Share them:\n"
    '    Resumable(store="sqlite:///streams.db")  # the workers of one machine; there is nothing to run\n'
    '    Resumable(store="redis://localhost:6379/0")  # any number of machines'
)
"""What to do about it, given how many workers there are."""

_SERVER = re.compile(r"\b(?:uvicorn|gunicorn|hypercorn|granian|fastapi (?:run|dev))\b")
_WORKERS = re.compile(r"\s(?:--workers[ =]|-w[ =]?)(\d+)(?=\s|$)")
_PROC = Path("/proc")


def warn_of_workers() -> None:
    """Say so, if there are several."""
    if (workers := count_workers()) > 1:
        logger.warning(ADVICE, workers)


def count_workers() -> int:
    """How many workers the server that runs this process has; 1 if nothing says that there are more."""
    # A worker has the arguments of the process that has started it.
    for command in (" ".join(sys.argv), "gunicorn " + os.environ.get("GUNICORN_CMD_ARGS", "")):
        if _SERVER.search(command) and (found := _WORKERS.findall(command)):
            return int(found[-1])
    # Last of what is said: uvicorn and gunicorn let their options win over the environment.
    told = os.environ.get("WEB_CONCURRENCY", "")
    return int(told) if told.isdecimal() else _count_siblings()


def _count_siblings() -> int:
    """This process, and those beside it that the same server has started by the same command (on Linux)."""
    try:
        parent, mine = os.getppid(), _command(os.getpid())
        if not _SERVER.search(_command(parent)) and not ("multiprocessing" in mine and "uvicorn" in sys.modules):
            return 1
        # Workers that were started in code, as by `uvicorn.run(workers=4)`, have no options to read.
        children = (_PROC / f"{parent}/task/{parent}/children").read_text().split()
        return sum(_command(int(child)) == mine for child in children)
    except OSError:
        return 1


def _command(pid: int) -> str:
    # Two workers differ in the numbers of their pipes alone.
    text = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ")
    return re.sub(r"\d+", "", text.decode("utf-8", "replace"))
