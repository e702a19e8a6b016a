"""The file itself: where it is, what is in it, and what can be wrong with it."""

import os
import sqlite3
from contextlib import closing, suppress
from importlib import resources
from pathlib import Path
from urllib.parse import parse_qsl, unquote

# "FARS" in ASCII.
APPLICATION_ID = 0x46415253
"""What marks a SQLite file as one of ours."""
VERSION = 1
"""The version of the tables in `schema.sql`; a file of another version is refused."""
SYNCHRONOUS = ("normal", "full")

# SQLite's write-ahead log needs memory that all workers share, and locks that hold; over a network there is neither.
_NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs",
    "fuse.juicefs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs",
}  # fmt: skip


class UnusableFileError(Exception):
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
    if path.startswith("sqlite:"):
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
    return Path(path).expanduser().resolve(), synchronous


def check_place(path: Path) -> None:
    """Raise `ValueError` unless the file may be where it is to be."""
    if not path.parent.is_dir():
        raise ValueError(f"SqliteStore: the directory {path.parent} does not exist. Create it, or give another path.")
    if path.is_dir():
        raise ValueError(f"SqliteStore: {path} is a directory. Give the path of a file.")
    if (kind := file_system(path.parent)) in _NETWORK:
        raise ValueError(
            f"SqliteStore: {path.parent} is on a network file system ({kind}), where SQLite cannot share a file "
            "safely. Use a local disk; for several machines, use RedisStore."
        )


def file_system(directory: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that holds a directory; nothing where that cannot be found out."""
    try:
        lines = mounts.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    target = os.path.realpath(directory)
    for line in lines:
        before, _, after = line.partition(" - ")
        # The kernel writes spaces and the like as octal escapes (proc(5)).
        point = before.split()[4].encode("latin-1", "replace").decode("unicode_escape")
        # The deepest mount wins, and of two on the same point the one that was mounted last.
        if (target == point or target.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind


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
        if not (has_tables := check_version(connection, path)):
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
    connection.execute("BEGIN IMMEDIATE")
    # Another worker may have been faster.
    if not _has_tables(connection, path):
        for statement in resources.files(__package__).joinpath("schema.sql").read_text("utf-8").split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def check_version(connection: sqlite3.Connection, path: Path) -> bool:
    """Refuse a file of something else, or of another version; return whether it has its tables already."""
    # At one moment: another worker may be making the tables.
    connection.execute("BEGIN")
    try:
        return _has_tables(connection, path)
    finally:
        connection.execute("ROLLBACK")


def _has_tables(connection: sqlite3.Connection, path: Path) -> bool:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application == APPLICATION_ID and version != VERSION:
        raise UnusableFileError(
            f"{path} was made by another version of fastapi-resumable (its tables have version {version}, this one "
            f"needs {VERSION}). Give the store a new file, or delete this one with its -wal and -shm files."
        )
    if application != APPLICATION_ID and (application or version or tables):
        raise UnusableFileError(f"{path} is a SQLite database of something else. Give the store a file of its own.")
    return bool(application)


def check_file(path: Path) -> None:
    """Raise `ValueError` for a file that can never be used, before the first request."""
    if path.exists():
        # What may pass, like a lock, is for the first request to meet.
        with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=0.1, isolation_level=None)) as connection:
            try:
                check_version(connection, path)
            except UnusableFileError as exc:
                raise ValueError(f"SqliteStore: {exc}") from None


def is_of_the_whole_file(failure: BaseException) -> bool:
    """Whether nothing else can be done with the file either, as with a full disk; not so for one damaged page."""
    name = str(getattr(failure, "sqlite_errorname", ""))
    return isinstance(failure, UnusableFileError | OSError) or name.startswith(
        ("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_NOTADB", "SQLITE_CANTOPEN")
    )
