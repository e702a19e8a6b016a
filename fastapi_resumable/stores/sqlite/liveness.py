"""Which workers are alive: each holds a lock that the kernel releases when its process ends, however that ends."""

import fcntl
import os
import weakref
from functools import partial
from pathlib import Path


class WorkerLock:
    """The lock of this worker, on a file of its own in a directory beside the database.

    A process that is stopped keeps its lock, so it is not taken for dead. The lock belongs to the open file, so two
    stores in one process are two workers.
    """

    def __init__(self, path: Path, worker: str) -> None:
        self._directory = path.with_name(path.name + "-workers")
        self._worker = worker
        self._fd: int | None = None

    def take(self) -> None:
        """Take the lock; again, if somebody has deleted the file.

        Raises:
            OSError: The file cannot be made.
        """
        path = self._directory / self._worker
        if self._fd is not None:
            try:
                if path.stat().st_ino == os.fstat(self._fd).st_ino:
                    return
            except FileNotFoundError:
                pass
            self.release()
        self._directory.mkdir(exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        # A child that this process forks would keep the lock for it.
        os.register_at_fork(after_in_child=partial(_close_in_child, weakref.ref(self)))

    def release(self) -> None:
        """Give the lock back."""
        if self._fd is not None:
            self.remove(self._worker)
            self.close()

    def close(self) -> None:
        """Give this process' hold of the lock back; a process that it was forked from keeps its own."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def is_dead(self, worker: str) -> bool:
        """Whether a worker's process has ended."""
        if worker == self._worker:
            return False
        try:
            fd = os.open(self._directory / worker, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            # Shared, so that two workers that ask at the same time do not take each other for the one they ask about.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True

    def remove(self, worker: str) -> None:
        """Delete the file of a worker that is dead."""
        (self._directory / worker).unlink(missing_ok=True)


def _close_in_child(reference: "weakref.ref[WorkerLock]") -> None:
    if (lock := reference()) is not None:
        lock.close()
