"""What `make demo-redis` starts: Redis, three workers of the example app, and nginx."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.server import Server


@contextmanager
def workers_demo(temporary: Path, words_per_second: int) -> Iterator[Server]:
    """Run it until the block ends; its temporary files are in `temporary`."""
    quick = {"EXAMPLE_WORDS_PER_SECOND": str(words_per_second), "FASTAPI_RESUMABLE_SHUTDOWN_GRACE": "0.1"}
    unset = {"OPENAI_BASE_URL": "", "OPENAI_API_KEY": ""}
    server = Server([sys.executable, "-m", "example_app.workers"], {**unset, **quick, "TMPDIR": str(temporary)})
    try:
        server.wait_ready()
        yield server
        server.stop()
    finally:
        # Each of its processes is in a session of its own, so that killing its group does not reach them.
        left = [pid for pid in server.workers() if pid != server.pid] if server.running else []
        server.kill()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        print(server.output)  # noqa: T201  # shown if the test fails
