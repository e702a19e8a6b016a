"""The state changes of a stream, each one atomic. Every one may be sent again if its reply was lost.

A stream is one hash. Fields of its current epoch: `epoch`, `status`, `worker`, `tail` (offset of the next byte),
`earliest` (the first offset to resume from), `mid` (the log ends within an event), `head`, `sse`, `started`,
`completed`, `expires` (milliseconds), `idem`, `code`, `wait` (the producer waits for readers), `told` (what `BEGIN`
replied). A queued request is a field `q:<epoch>`. What is stopped or replaced, be it queued, live or over, leaves
`x:<epoch>` for a minute, the code and the time: for its worker to find, and for those who wait for it. `gone` is what
`STOP` replied; like `told`, it is there for a caller that lost the reply.

In a log, the entry that ends at offset N has the id `N-0`; the one that ends the log has `N-1`. So an entry cannot be
written twice, and an offset is a place in the log. KEYS[1] is the hash, KEYS[2] the log.
"""

from functools import cached_property
from hashlib import sha1
from importlib.resources import files


class Script:
    """A Lua script: `common.lua`, and the file of its name; and the name Redis knows it by."""

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def text(self) -> str:
        """What Redis runs."""
        folder = files(__package__) / "lua"
        return "\n".join((folder / f"{name}.lua").read_text(encoding="utf-8") for name in ("common", self.name))

    @cached_property
    def sha(self) -> str:
        """Its digest, as Redis computes it."""
        return sha1(self.text.encode(), usedforsecurity=False).hexdigest()


PEEK = Script("peek")
"""The hash, without what has expired."""

RESERVE = Script("reserve")
"""Queue a request, or name its rival, and the worker without which that one is over."""

RELEASE = Script("release")
"""Take a request out of the queue; should it have begun without its worker learning of it, end it."""

BEGIN = Script("begin")
"""Make a queued request the current epoch. Replies whom to tell that they were replaced."""

APPEND = Script("append")
"""Write bytes, and the end if there is one. Refused unless the epoch is the live one, and goes on at `first`."""

RESTORE = Script("restore")
"""Put a live epoch back that Redis has lost, to be written again from `offset` on."""

STOP = Script("stop")
"""Stop what is queued or live, forget what has ended. Replies whom to tell."""

REAP = Script("reap")
"""End what belongs to a worker that is gone. Replies the epochs that were ended, so that only one caller gets each."""

TOUCH = Script("touch")
"""Keep a live stream from expiring."""

PAGE = Script("page")
"""Bytes of a log from the entry that holds `offset` on, and how the log ended if that comes into view."""

REPORT = Script("report")
"""Say how far a worker's slowest reader is. Replies whom to tell, if the producer waits for that."""

WAIT = Script("wait")
"""Ask for a message when a reader advances. Replies where the slowest one is."""

CLAIM = Script("claim")
"""Count a stream against its owner's limit. Replies all that count, with their workers, if there is no room."""

BEAT = Script("beat")
"""Renew a lease. Replies whether it was still there."""

POST = Script("post")
"""Add a message to an inbox, or to the changes."""

INDEX = Script("index")
"""Note an id under a shorter one, of which it is a variant."""
