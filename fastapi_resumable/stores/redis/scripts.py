"""The state changes of a stream, each one atomic. Every one may be sent again if its reply was lost.

A stream is one hash. Fields of its current epoch: `epoch`, `status`, `worker`, `tail` (offset of the next byte),
`earliest` (the first offset to resume from), `mid` (the log ends within an event), `head`, `sse`, `started`,
`completed`, `expires` (milliseconds), `idem`, `code`, `wait` (the producer waits for readers), `told` (what `BEGIN`
replied), `held` (until when nothing is appended, as the terminal event is being made). A queued request is a field
`q:<epoch>`. What is stopped or replaced, be it queued, live or over, leaves `x:<epoch>` for a minute, the code and the
time: for its worker to find, and for those who wait for it. `gone` is what `STOP` replied; like `told`, it is there for
a caller that lost the reply.

In a log, the entry that ends at offset N has the id `N-0`; the one that ends the log has `N-1`. So an entry cannot be
written twice, and an offset is a place in the log. KEYS[1] is the hash, KEYS[2] the log.
"""

from functools import cached_property
from hashlib import sha1
from importlib.resources import files


class Script:
    """`common.lua`, and the file of its name; and the digest that Redis knows the two by."""

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


# What each does, and what it replies, is said at the head of its file.
APPEND = Script("append")
BEGIN = Script("begin")
BEAT = Script("beat")
CLAIM = Script("claim")
INDEX = Script("index")
PAGE = Script("page")
PEEK = Script("peek")
POST = Script("post")
REAP = Script("reap")
RELEASE = Script("release")
REPORT = Script("report")
RESERVE = Script("reserve")
RESTORE = Script("restore")
STOP = Script("stop")
TOUCH = Script("touch")
WAIT = Script("wait")
