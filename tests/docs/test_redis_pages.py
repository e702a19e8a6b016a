"""What the pages on Redis say of commands, keys and bounds is what the store does."""

import re

from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable.stores.redis import calls, keys, link

from .player import ROOT

OPERATIONS = (ROOT / "docs/how-to/redis-operations.md").read_text()
STORE = ROOT / "fastapi_resumable" / "stores" / "redis"


def permitted() -> set[str]:
    """The commands that the page's user may send, besides whole categories."""
    [command] = re.findall(r"\$ redis-cli acl setuser (.*?)\nOK", OPERATIONS, re.DOTALL)
    return set(re.findall(r" '?\+([a-z]+)", command))


def test_the_rights_that_are_listed_are_those_that_are_needed() -> None:
    """Every command in the code is on the list, and no other is."""
    code = "".join(path.read_text() for path in (*STORE.glob("*.py"), *STORE.glob("lua/*.lua")))
    sent = re.findall(r"redis\.call\('(\w+)'", code) + re.findall(r'(?:Call\(|execute_command\(\s*)"(\w+)"', code)
    assert {"XADD", "XREAD", "EXISTS"} <= {*sent}
    # redis-py's own scripts are run by these.
    assert {command.lower() for command in sent} | {"evalsha", "script"} == permitted()


def test_the_keys_that_are_listed_are_those_that_there_are() -> None:
    """The table has each form of key that the code can make."""
    names = keys.Keys("<prefix>")
    stream = names.stream(StreamKey(None, "-")).replace("/-", "/<id>")
    variants = names.variants(StreamKey(None, "-")).replace("/-", "/<id>")
    owner, worker, inbox = names.owner("-")[:-1] + "<owner>", names.worker("<worker>"), names.inbox("<worker>")
    log = keys.log_key(stream, "<epoch>")
    logs = [log, *(f"{log}:{part}" for part in ("packed", "readers", "ended"))]
    made = {stream, *logs, variants, owner, worker, inbox, names.changes}
    table = OPERATIONS.partition("\n## The keys\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"(?m)^\| `([^`]+)` \|", table)) == made


def test_the_numbers_in_the_pages_are_those_of_the_code() -> None:
    """An hour, ten thousand changes, thirty-two connections."""
    assert (calls.LIVE, calls.CHANGES, link.PARALLEL) == (3600, 10_000, 32)
    assert "latest 10,000 changes" in OPERATIONS
    assert "at most 35: up to 32 for requests" in (ROOT / "docs/how-to/redis-sizing.md").read_text()
