"""What Sentry's SDK reports, without any configuration."""

import subprocess
import sys

import pytest

from tests.support.life_apps import PLACES
from tests.support.server import ROOT
from tests.telemetry.sentry_app import fates


@pytest.mark.timeout(300)  # a process on a busy machine
def test_only_a_stream_that_failed_is_reported_and_once():
    """Neither a client that leaves, nor a stop, nor a replaced stream is an error."""
    command = [sys.executable, "-m", "tests.telemetry.sentry_app"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    reported = [line.split() for line in done.stdout.splitlines() if line]
    assert reported == [
        [face, fate.__name__, *(["RuntimeError"] if "failed" in fate.__name__ else [])]
        for face in PLACES
        for fate in fates(face)
    ]
