"""`curl`, in a loop of the shell that asks for what comes after the bytes that are in the file."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.clients.lines import ENDINGS, PAGE, Line, finished_line, open_line
from tests.docs.player import blocks
from tests.support.server import Server
from tests.support.ssemodel import parse

pytestmark = pytest.mark.timeout(400)
TIMEOUT = 360
START = 'curl -sNf -X POST "$START" > answer'


def loop() -> str:
    """The loop that the page about clients shows, without its pause."""
    commands = "".join(block.code for block in blocks(PAGE) if block.language == "console")
    shown = re.search(r"^\$ (until .*)$", re.sub(r"\\\n *", "", commands), re.MULTILINE)
    assert shown
    return shown[1].replace("localhost:8000/v1/stream/chat", "$REPLAY").replace("sleep 1", "sleep 0")


def curl(line: Line, start: str, folder: Path) -> bytes:
    """Start a stream, if told where, and read it to its end; the file that all this makes."""
    script = ["bash", "-c", f"{START if start else 'touch answer'}\n{loop()}"]
    env = {"PATH": "/usr/bin:/bin", "START": start, "REPLAY": line.replay}
    subprocess.run(script, cwd=folder, env=env, timeout=TIMEOUT, check=True)
    return (folder / "answer").read_bytes()


def test_curl_gets_all_over_200_cuts(server: Server, tmp_path: Path) -> None:
    """Server-sent events, by the number of bytes it has."""
    line = open_line(server)
    line.check([event.data for event in parse(curl(line, line.count, tmp_path))], cuts=200)


def test_curl_gets_every_byte_of_another_media_type(server: Server, tmp_path: Path) -> None:
    """NDJSON, which has no ids."""
    line = open_line(server, cuts=50)
    body = curl(line, line.count.replace("/count", "/lines.ndjson"), tmp_path)
    line.check([json.loads(row) for row in body.splitlines()], cuts=50)


@pytest.mark.parametrize(("end", "last"), ENDINGS)
def test_curl_sees_a_failure_and_a_stop(server: Server, tmp_path: Path, end: str, last: tuple[str, str]) -> None:
    """As the last event in the file; the loop ends, with 0."""
    line = open_line(server, cuts=5, end=end)
    *received, ending = parse(curl(line, line.count, tmp_path))
    line.check([event.data for event in received], cuts=5)
    assert (ending.type, json.loads(ending.data)["code"]) == last


def test_curl_ends_when_only_the_end_was_cut_off(server: Server, tmp_path: Path) -> None:
    """From the tail of a finished stream it gets an empty body, and 0."""
    line = finished_line(server)
    line.check([event.data for event in parse(curl(line, "", tmp_path))])


def test_curl_takes_an_end_within_the_head_for_a_success(server: Server, tmp_path: Path) -> None:
    """What it cannot tell, and the page about clients warns of: a connection that ends before the body begins."""
    line = open_line(server, cuts=1, least=60, most=60, heads=True, seed=1)  # a FIN, with this seed
    subprocess.run(["curl", "--silent", "--fail", "--request", "POST", line.count], cwd=tmp_path, check=True)
    assert line.look()["resets"] == 0
