"""The locks by which the workers of a file know which of them are alive: the kernel releases them with the process."""

import math
import os
import threading
import weakref
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic

try:
    import fcntl
except ImportError as exc:
    raise ImportError(
        "SqliteStore needs the file locks of Linux, macOS or another Unix. On Windows, use RedisStore or MemoryStore.",
        name="fcntl",
    ) from exc

GRACE = 2.0
"""Seconds within which a worker makes its file anew that somebody has deleted."""


class WorkerLock:
    """The lock of this worker, on a file of its own in a directory beside the database.

    A process that is stopped keeps its lock, so it is not taken for dead. The lock belongs to the open file, so two
    stores in one process are two workers. Both threads of a worker use it.
    """

    def __init__(self, path: Path, worker: str) -> None:
        self._directory = path.with_name(path.name + "-workers")
        self._worker = worker
        self._fd: int | None = None
        self._missing: dict[str, float] = {}
        """Since when the files of workers have been missing."""
        self._guard = threading.Lock()
        # A child that this process forks would keep the lock for it.
        os.register_at_fork(after_in_child=partial(_close_in_child, weakref.ref(self)))

    def take(self) -> None:
        """Take the lock; again, if somebody has deleted the file."""
        with self._guard:
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

    def keep(self) -> None:
        """Take the lock again, if it was taken and somebody has deleted the file since."""
        if self._fd is not None:
            self.take()

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
        """Delete the file of this worker, which goes."""
        (self._directory / self._worker).unlink(missing_ok=True)


def _close_in_child(reference: "weakref.ref[WorkerLock]") -> None:
    if (lock := reference()) is not None:
        lock.close()
