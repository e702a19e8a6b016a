"""`SqliteStore`: the store protocol on a SQLite file."""

from os import PathLike

from ..shared.backend import SharedBackend
from ..shared.store import OnStoreFailure, SharedStore
from .backend import SqliteBackend
from .files import check_path, parse_path
from .threads import File


class SqliteStore(SharedStore):
    """Keeps streams in a SQLite file, for all workers of one machine, and over restarts.

    There is nothing to run and nothing to install. `max_streams` counts for each worker; `max_streams_per_owner` and
    `max_total_bytes` count over all of them. Not for network file systems.

    Args:
        path_or_url: A path, or a URL: `sqlite:///streams.db`, or `sqlite:////var/lib/app/streams.db` for an absolute
            path. What was shown outlives a power cut, because each transaction waits until the disk has it; with
            `?synchronous=normal` that is left to the system, and the last moments before a power cut may be lost.
        store_timeout: Seconds for which the file may be unusable before the store gives it up.
        on_store_failure: What happens then: with `degrade`, new requests are answered without being recorded, and live
            streams go on for the readers on their own worker; with `fail`, they are refused, and end with an error.

    Raises:
        ValueError: An argument is wrong, or the file cannot be used there; the message says what to do.
    """

    def __init__(
        self,
        path_or_url: "str | PathLike[str]",
        *,
        store_timeout: float = 10.0,
        on_store_failure: OnStoreFailure = "degrade",
    ) -> None:
        super().__init__(store_timeout, on_store_failure)
        path, synchronous = parse_path(path_or_url)
        # Complains now, rather than at the first request.
        check_path(path)
        self._file = File(path, synchronous, self._timeout)

    def __repr__(self) -> str:
        return f"SqliteStore({str(self._file.path)!r})"

    def _open_backend(self) -> SharedBackend:
        return SqliteBackend(self._file, self._limits, degrade=self._degrade)
