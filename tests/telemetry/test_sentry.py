"""What Sentry's SDK reports, without any configuration."""

import subprocess
import sys

from tests.support.server import ROOT
from tests.telemetry.test_fates import FATES


def test_only_a_stream_that_failed_is_reported_and_once():
    """Neither a client that leaves, nor a stop, nor a replaced stream is an error."""
    command = [sys.executable, "-m", "tests.telemetry.sentry_app"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.splitlines() if line]
    assert told == [
        [face, fate.__name__, *(["RuntimeError"] if "failed" in fate.__name__ else [])]
        for face in ("decorator", "route_class", "middleware")
        for fate in FATES
    ]
