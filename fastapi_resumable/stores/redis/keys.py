"""What every key is called. All keys of one stream share a hash tag, so that a Cluster keeps them in one place.

<prefix>:{@<owner>/<id>}                    hash: the current epoch, and the requests that are queued
<prefix>:{@<owner>/<id>}:<epoch>            stream: the log of one epoch
<prefix>:{@<owner>/<id>}:<epoch>:packed     list: the older part of a log of small pieces, in blocks
<prefix>:{@<owner>/<id>}:<epoch>:readers    hash: how far each worker's slowest reader is
<prefix>:{@<owner>/<id>}:<epoch>:ended      hash: the worker that has yet to hear that this epoch was ended
<prefix>:{@<owner>/<id>}:variants           sorted set: the longer ids that this one stands for
<prefix>:owner:<owner>                      hash: the live streams of an owner, where there is a limit
<prefix>:worker:<worker>                    string: the lease of a worker
<prefix>:worker:<worker>:inbox              stream: messages of other workers
<prefix>:changes                            stream: the latest changes of state, of all streams
"""

from functools import lru_cache
from urllib.parse import quote

from ..._core.ids import StreamKey


class Keys:
    """The names under one prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.changes = f"{prefix}:changes"

    def stream(self, key: StreamKey) -> str:
        """The hash of a stream; other keys of the same stream begin with its name."""
        owner = "" if key.owner is None else "@" + _escape(key.owner)
        # The `@` tells no owner from an owner whose name is empty.
        return f"{self.prefix}:{{{owner}/{_escape(key.id)}}}"

    def variants(self, key: StreamKey) -> str:
        """The longer ids of which the id is a short form."""
        return self.stream(key) + ":variants"

    def owner(self, owner: str) -> str:
        """The live streams of an owner."""
        return f"{self.prefix}:owner:{_escape(owner)}"

    def worker(self, worker: str) -> str:
        """The lease of a worker."""
        return f"{self.prefix}:worker:{worker}"

    def inbox(self, worker: str) -> str:
        """Messages for a worker."""
        return f"{self.prefix}:worker:{worker}:inbox"


def log_key(stream: str, epoch: str) -> str:
    """The log of one epoch."""
    return f"{stream}:{epoch}"


@lru_cache(maxsize=1024)
def _escape(text: str) -> str:
    # Braces would end the hash tag, and a slash the owner; what is left is easy to read and to type.
    return quote(text, safe="", errors="surrogatepass").replace("%3A", ":")
