"""Recognizing a server that restarts at every change of a file: `fastapi dev`, `uvicorn --reload`."""

import multiprocessing
import sys

from uvicorn import Config


def is_reloaded() -> bool:
    """Whether the application is being imported by a server that a reloader has started."""
    if multiprocessing.parent_process() is None:
        return False
    # The server is among the callers of the import, and its configuration is available nowhere else.
    frame = sys._getframe()  # noqa: SLF001  # the way to walk the stack that takes no time
    while (caller := frame.f_back) is not None:
        frame = caller
        config = frame.f_locals.get("config")
        if isinstance(config, Config):
            return config.should_reload
    return False
