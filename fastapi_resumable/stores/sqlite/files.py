"""The file itself: where it is, what is in it, what can be wrong with it; and the locks of the workers beside it.

By these, the workers of a file know which of them are alive: the kernel releases a lock with its process.
"""

import math
import os
import re
import sqlite3
import weakref
from collections.abc import Iterable
from contextlib import closing, suppress
from functools import partial
from importlib import resources
from pathlib import Path
from time import monotonic
from urllib.parse import parse_qsl, unquote

try:
    import fcntl
except ImportError as exc:
    raise ImportError(
        "SqliteStore needs the file locks of Linux, macOS or another Unix. On Windows, use RedisStore or MemoryStore.",
        name="fcntl",
    ) from exc

# "FARS" in ASCII.
APPLICATION_ID = 0x46415253
"""What marks a SQLite file as one of ours."""
VERSION = 1
"""The version of the tables in `schema.sql`; a file of another version is refused."""
SYNCHRONOUS = ("normal", "full")
GRACE = 10.0
"""Seconds within which a worker makes its file anew that somebody has deleted: at the latest when it cleans up."""

# SQLite's write-ahead log needs memory that all workers share, and locks that hold; over a network there is neither.
_NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs",
    "fuse.juicefs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs",
}  # fmt: skip


class UnusableFileError(ValueError):
    """The file is none that a store may use; the message says why, and what to do."""


def parse_path(path_or_url: object) -> tuple[Path, str]:
    """The path, and how writes are synchronised, from a path or from `sqlite:///relative.db`, `sqlite:////abs.db`."""
    example = "give a path, or a URL like sqlite:///streams.db (sqlite:////var/lib/app/streams.db for an absolute one)"
    if isinstance(path_or_url, os.PathLike):
        path_or_url = os.fspath(path_or_url)
    if not isinstance(path_or_url, str) or not path_or_url:
        raise ValueError(f"SqliteStore needs a file, not {path_or_url!r}: {example}.")
    synchronous = "full"
    path = path_or_url
    if path.startswith("sqlite:") or "://" in path:
        if not path.startswith("sqlite:///"):
            raise ValueError(f"{path_or_url!r} has no path: {example}.")
        path, _, query = path.removeprefix("sqlite:///").partition("?")
        path = unquote(path)
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name != "synchronous" or value not in SYNCHRONOUS:
                raise ValueError(f"{path_or_url!r}: only ?synchronous=normal or ?synchronous=full may follow the path.")
            synchronous = value
    if not path or path == ":memory:" or "\0" in path:
        raise ValueError(f"{path_or_url!r} names no file: {example}; or store='memory'.")
    # Without links: workers that name the file in two ways have to find each other's locks beside it.
    return Path(os.path.expanduser(path)).resolve(), synchronous  # noqa: PTH111  # `Path`'s raises for unknown users


def check_path(path: Path) -> None:
    """Raise `ValueError` for a file that can never be used, before the first request."""
    if not path.parent.is_dir():
        raise ValueError(f"SqliteStore: the directory {path.parent} does not exist. Create it, or give another path.")
    if path.is_dir():
        raise ValueError(f"SqliteStore: {path} is a directory. Give the path of a file.")
    if (kind := file_system(path.parent)) in _NETWORK:
        raise ValueError(
            f"SqliteStore: {path.parent} is on a network file system ({kind}), where SQLite cannot share a file "
            "safely. Use a local disk; for several machines, use RedisStore."
        )
    if path.exists():
        # What may pass, like a lock, is for the first request to meet.
        with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=0.1, isolation_level=None)) as connection:
            check_tables(connection, path)


def file_system(directory: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that holds a directory; nothing where that cannot be found out."""
    try:
        lines = mounts.read_bytes().split(b"\n")
    except OSError:
        return ""
    best, kind = b"", b""
    target = os.path.realpath(os.fsencode(directory))
    for line in filter(None, lines):
        before, _, after = line.partition(b" - ")
        # The kernel writes spaces and the like as octal escapes (proc(5)).
        point = re.sub(rb"\\(\d{3})", lambda match: bytes([int(match[1], 8)]), before.split(b" ")[4])
        # The deepest mount wins, and of two on the same point the one that was mounted last.
        if (target == point or target.startswith(point.rstrip(b"/") + b"/")) and len(point) >= len(best):
            best, kind = point, after.split(b" ")[0]
    return kind.decode("ascii", "replace")


def connect(path: Path, busy: float) -> sqlite3.Connection:
    """Open the file, with its tables made if it is new.

    Raises:
        UnusableFileError: It belongs to something else, or to another version of this library.
        sqlite3.Error: It cannot be used now.
    """
    if path.exists() and not os.access(path, os.W_OK):
        # SQLite would open it for reading, and until that is closed no connection of this process could write to it.
        raise OSError("the file is read-only")
    # Without `isolation_level`, the `sqlite3` module begins no transactions of its own.
    connection = sqlite3.connect(path, timeout=busy, isolation_level=None, check_same_thread=False)
    try:
        # In WAL mode this syncs at checkpoints alone, which keeps the file sound. `FileThread.sync` makes the rest
        # durable.
        connection.execute("PRAGMA synchronous = NORMAL")
        if not (has_tables := check_tables(connection, path)):
            # Before there is a table: afterwards it would need a `VACUUM` of the whole file. And not again, because it
            # takes the lock, and a file that somebody has locked can still be read.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise UnusableFileError(f"{path}: SQLite cannot keep a write-ahead log there. Use a local disk.")
        # The log grows with the longest transaction, and SQLite would leave it that large.
        connection.execute(f"PRAGMA journal_size_limit = {4 * 1024 * 1024}")
        if not has_tables:
            _make_tables(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _make_tables(connection: sqlite3.Connection, path: Path) -> None:
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        # Another worker may have been faster.
        if not check_tables(connection, path):
            for statement in resources.files(__package__).joinpath("schema.sql").read_text("utf-8").split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")


def check_tables(connection: sqlite3.Connection, path: Path) -> bool:
    """Refuse a file of something else, or of another version; return whether it has its tables already."""
    # By one statement, so at one moment: another worker may be making the tables.
    application, version, tables = connection.execute(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master) "
        "FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    if application == APPLICATION_ID and version != VERSION:
        raise UnusableFileError(
            f"{path} was made by another version of fastapi-resumable (its tables have version {version}, this one "
            f"needs {VERSION}). Give the store a new file, or delete this one with its -wal and -shm files."
        )
    if application != APPLICATION_ID and (application or version or tables):
        raise UnusableFileError(f"{path} is a SQLite database of something else. Give the store a file of its own.")
    return bool(application)


class WorkerLock:
    """The lock of this worker, on a file of its own in a directory beside the database.

    A process that is stopped keeps its lock, so it is not taken for dead. The lock belongs to the open file, so two
    stores in one process are two workers. The writer's thread takes it and gives it back.
    """

    def __init__(self, path: Path, worker: str) -> None:
        self._directory = path.with_name(path.name + "-workers")
        self._worker = worker
        self._fd: int | None = None
        self._missing: dict[str, float] = {}
        """Since when the files of workers have been missing."""
        # A child that this process forks would keep the lock for it.
        os.register_at_fork(after_in_child=partial(_close_in_child, weakref.ref(self)))

    def take(self) -> None:
        """Take the lock; again, if somebody has deleted the file."""
        if self._fd is None or not self._is_in_place(self._fd):
            self.close()
            self._directory.mkdir(exist_ok=True)
            fd = os.open(self._directory / self._worker, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            # It is this worker's alone, except for a moment in which another one asks whether it is locked.
            fcntl.flock(fd, fcntl.LOCK_EX)
            self._fd = fd

    def _is_in_place(self, fd: int) -> bool:
        try:
            return (self._directory / self._worker).stat().st_ino == os.fstat(fd).st_ino
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Give the lock back; a process that this one was forked from keeps it."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def find_dead(self, workers: Iterable[str]) -> list[str]:
        """Those of some workers whose processes have ended."""
        return [worker for worker in workers if worker != self._worker and self._is_dead(worker)]

    def _is_dead(self, worker: str) -> bool:
        try:
            fd = os.open(self._directory / worker, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            # Either it was deleted, and is about to be made anew. Or the database was copied from elsewhere, or the
            # power failed: then it has been missing since before this worker began.
            since = self._missing.setdefault(worker, -math.inf if self._fd is None else monotonic())
            return monotonic() - since > GRACE
        self._missing.pop(worker, None)
        try:
            # Shared, so that two workers that ask at the same time do not take each other for the one they ask about.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True

    def clean_up(self, known: Iterable[str]) -> None:
        """Delete the files of dead workers, except of those `known` to the database until now.

        Another worker may just have read of these, and asks next whether they live: a missing file would not tell.
        """
        with suppress(FileNotFoundError):
            strays = {each.name for each in self._directory.iterdir()}.difference(known)
            for worker in self.find_dead(strays):
                (self._directory / worker).unlink()

    def remove(self) -> None:
        """Delete the file of this worker, which goes: it is kept no longer."""
        self.close()
        (self._directory / self._worker).unlink(missing_ok=True)


def _close_in_child(reference: "weakref.ref[WorkerLock]") -> None:
    if (lock := reference()) is not None:
        lock.close()
