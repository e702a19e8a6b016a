"""The app's own record of what was said. The library keeps a finished answer for minutes; this keeps it for good."""

import sqlite3
import threading

from pydantic import BaseModel


class Turn(BaseModel):
    """A question and, once it is there, its answer."""

    turn: str
    question: str
    answer: str | None
    status: str | None


class Conversations:
    """Turns in SQLite; in memory, unless a path is given. Safe to use from several threads."""

    def __init__(self, path: str = ":memory:") -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._execute(
            "CREATE TABLE IF NOT EXISTS turns (conversation TEXT, turn TEXT, question TEXT, answer TEXT, status TEXT,"
            " PRIMARY KEY (conversation, turn))"
        )

    def ask(self, conversation: str, turn: str, question: str) -> None:
        """Note a question; asking the same turn again changes nothing."""
        self._execute(
            "INSERT OR IGNORE INTO turns (conversation, turn, question) VALUES (?, ?, ?)", conversation, turn, question
        )

    def answer(self, conversation: str, turn: str, answer: str, status: str) -> None:
        """Note how the answer came out."""
        self._execute(
            "UPDATE turns SET answer = ?, status = ? WHERE conversation = ? AND turn = ?",
            answer, status, conversation, turn,
        )  # fmt: skip

    def turns(self, conversation: str) -> list[Turn]:
        """All turns of a conversation, oldest first; none if it has not begun."""
        rows = self._execute(
            "SELECT turn, question, answer, status FROM turns WHERE conversation = ? ORDER BY rowid", conversation
        )
        return [Turn(**dict(row)) for row in rows]

    def withdraw(self, conversation: str, turn: str) -> None:
        """Forget a question that the server refused."""
        self._execute("DELETE FROM turns WHERE conversation = ? AND turn = ?", conversation, turn)

    def forget(self, conversation: str) -> None:
        """Forget a conversation."""
        self._execute("DELETE FROM turns WHERE conversation = ?", conversation)

    def _execute(self, sql: str, *values: str) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()
