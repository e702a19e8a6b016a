"""What a client does next to get the whole of a stream, each item once: pure decisions, no I/O.

The one who does the I/O asks for the next request (`ask`), and tells what became of it: `head`, then `feed`, then `end`
or `cut`; or `cut` at once. Invariant: what has been delivered ends exactly where the next request goes on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

from ..models import ResumableStatus
from .backoff import Backoff, retry_after
from .cursors import ByteCursor, Cursor, EventCursor, Item, LineCursor, terminal
from .errors import ConnectionLost, RequestRefused, StreamCancelled, StreamFailed, StreamIncomplete

NOT_NOW = frozenset({408, 425, 429, 502, 503, 504})
"""Answers to a request that has not begun yet, and may later."""
NOT_HEAD = frozenset({405, 501})


class StreamState(StrEnum):
    """Where a client is with a stream. The last five are final."""

    CONNECTING = "connecting"
    """The request that begins the stream is under way."""
    OPEN = "open"
    """Connected: items come."""
    RECONNECTING = "reconnecting"
    """The connection broke; the client comes back by itself."""
    DONE = "done"
    """The stream has ended, and this client has all of it."""
    STOPPED = "stopped"
    """The stream was stopped, by this client or another, or replaced."""
    FAILED = "failed"
    """The stream ended, and did not complete."""
    LOST = "lost"
    """The client could not get back, or was refused."""
    DETACHED = "detached"
    """The client has left; the stream goes on without it."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to be made, after `delay` seconds; without a `method`, the one that begins the stream."""

    delay: float
    method: str | None = None
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an answer; `headers` has lower-case names, or does not mind."""

    status_code: int
    headers: Mapping[str, str]
    url: str
    delimited: bool
    """Whether the protocol tells the end of the body from the loss of the connection."""

    @property
    def is_success(self) -> bool:
        """Whether there is a body to be read."""
        return 200 <= self.status_code < 300


class Resumption:
    """The state of one client of one stream."""

    def __init__(
        self,
        backoff: Backoff,
        offset: int | None = 0,
        on_state: Callable[[StreamState], object] | None = None,
    ) -> None:
        """`offset`: where the first answer begins; `None` if nobody knows, so that it can't be resumed."""
        self.state = StreamState.CONNECTING
        self._on_state = on_state
        self.stopping = False
        """Whether it is this client that stops the stream."""
        self.raises = True
        """Whether an event that says that the stream did not complete is raised rather than delivered."""
        self.replay_url: str | None = None
        self.epoch: str | None = None
        self.cursor: Cursor = ByteCursor(offset or 0)
        self._offset = offset
        self._backoff = backoff
        self._failures = 0
        self._delay = 0.0
        self._begun = False
        self._head: Head | None = None
        self._heard = False
        """Whether this connection has brought a byte."""
        self._probing = False
        self._may_probe = True
        self._failure: StreamIncomplete | None = None
        self._rest: list[Item] = []

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to ask for."""
        return self.state not in (StreamState.CONNECTING, StreamState.OPEN, StreamState.RECONNECTING)

    def due(self) -> list[Item]:
        """What is to be delivered before anything else is asked for; none, usually.

        Raises:
            StreamIncomplete: The stream has ended, and did not complete.
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        rest, self._rest = self._rest, []
        return rest

    def ask(self) -> Ask | None:
        """The next request; `None` if there is none."""
        if self.is_over:
            return None
        delay, self._delay = self._delay, 0.0
        if self.replay_url is None:
            return Ask(delay)
        place = self.cursor.received if self._probing else self.cursor.resume()
        method = "HEAD" if self._probing else "GET"
        if isinstance(place, int):
            return Ask(delay, method, self._url({"from": place}))
        return Ask(delay, method, self._url({}), {"Last-Event-ID": place})

    def stop(self) -> Ask:
        """The request that stops the stream.

        Raises:
            RuntimeError: The server does not keep the stream.
        """
        if self.replay_url is None:
            raise RuntimeError("The server does not keep this stream, so it cannot be stopped. Close it instead.")
        self.stopping = True
        return Ask(0, "DELETE", self._url({}))

    def _url(self, query: Mapping[str, object]) -> str:
        assert self.replay_url is not None
        separator = "&" if "?" in self.replay_url else "?"
        return f"{self.replay_url}{separator}{urlencode({'epoch': self.epoch, **query})}"

    def head(self, head: Head, body: bytes = b"") -> bool:
        """Take the head of an answer, and the `body` if it is no success; return whether a body is to be read.

        Raises:
            RequestRefused: The answer is final.
            ConnectionLost: It is one failure too many.
        """
        probing, self._probing = self._probing, False
        self._head, self._heard = head, False
        if not head.is_success:
            if probing and head.status_code in NOT_HEAD:
                self._may_probe = False
            else:
                self._refuse(head, body)
            return False
        if self._begun and head.headers.get("x-stream-epoch") != self.epoch:
            # What a network shows that wants its user to sign in first, for one.
            self.cut(ConnectionError(f"{head.url} answered with something else than the stream"))
            return False
        if probing:
            self._probed(head.headers)
            return False
        if not self._begun:
            self._begin(head)
            if self.replay_url is not None and "respond-async" in head.headers.get("preference-applied", ""):
                # An answer about the stream, and not the stream.
                return False
        self._enter(StreamState.OPEN)
        return True

    def feed(self, chunk: bytes) -> list[Item]:
        """Take a part of the body; return the items that it makes whole."""
        if chunk:
            self._heard = True
        return self._checked(self.cursor.feed(chunk))

    def end(self) -> list[Item]:
        """Take the end of the body; return the items that it makes whole.

        Raises:
            ConnectionLost: It is no end, and one failure too many.
        """
        assert self._head is not None
        if not self._head.delimited and self.replay_url is not None:
            self.cut(ConnectionError("the body has no length, so its end cannot be told from a cut"))
            return []
        items = self._checked(self.cursor.finish())
        if not self.is_over:
            self._enter(StreamState.STOPPED if self.stopping else StreamState.DONE)
        return items

    def cut(self, error: Exception) -> None:
        """Take the loss of the connection, or that none was to be had.

        Raises:
            ConnectionLost: It is one failure too many, or there is no way back.
        """
        if self._begun and self.replay_url is None:
            self._enter(StreamState.LOST)
            raise ConnectionLost(
                "The connection broke, and the answer cannot be resumed: it names no Content-Location and "
                "X-Stream-Epoch. Is the endpoint resumable, and the router included?"
            ) from error
        self._fail(error, self.cursor.retry)

    def interrupted(self) -> None:
        """Take the loss of the connection by the hand of the user; it is no failure."""
        if self._begun and self.replay_url is None:
            self.detach()
        elif not self.is_over:
            self._enter(StreamState.RECONNECTING if self._begun else StreamState.CONNECTING)

    def detach(self) -> None:
        """The user has had enough."""
        if not self.is_over:
            self._enter(StreamState.DETACHED)

    def read_events(self) -> None:
        """Decode server-sent events from here on."""
        self.cursor = EventCursor(self.cursor.offset, self.epoch)

    def read_lines(self, charset: str) -> None:
        """Cut lines of text from here on."""
        self.cursor = LineCursor(self.cursor.offset, charset)

    # What follows from it.

    def _enter(self, state: StreamState) -> None:
        if state is not self.state:
            self.state = state
            if self._on_state is not None:
                self._on_state(state)

    def _begin(self, head: Head) -> None:
        self._begun = True
        self.epoch = head.headers.get("x-stream-epoch")
        self.replay_url = replay_url(head) if self._offset is not None else None
        self.cursor = ByteCursor(self._offset or 0)

    def _fail(self, error: Exception, at_least: float) -> None:
        self._failures = 1 if self._heard else self._failures + 1
        # Connected, and not a byte: the stream may be silent; or it broke off, and has no event to say so.
        self._probing = self._may_probe and self.state is StreamState.OPEN and not self._heard
        self._heard = False
        if self._backoff.exhausted(self._failures):
            self._enter(StreamState.LOST)
            raise ConnectionLost(f"Gave up after {self._failures} attempts in a row: {error}") from error
        self._enter(StreamState.RECONNECTING if self._begun else StreamState.CONNECTING)
        self._delay = self._backoff.delay(self._failures, at_least)

    def _refuse(self, head: Head, body: bytes) -> None:
        if self.stopping and head.status_code in (404, 409):
            self._enter(StreamState.STOPPED)
            return
        refused = RequestRefused.read(head.status_code, body)
        if head.status_code in NOT_NOW or (self._begun and head.status_code >= 500):
            self._fail(refused, max(self.cursor.retry, retry_after(head.headers)))
        else:
            self._enter(StreamState.LOST)
            raise refused

    def _probed(self, headers: Mapping[str, str]) -> None:
        """Tell a stream that is silent from one that has broken off."""
        status = headers.get("x-stream-status", "")
        if int(headers.get("x-stream-total-bytes", -1)) != self.cursor.received:
            return
        if status == ResumableStatus.COMPLETED:
            self._rest = self.cursor.finish()
            self._enter(StreamState.DONE)
        elif status == ResumableStatus.CANCELLED:
            self._conclude(StreamCancelled(status, "The stream was stopped."))
        elif status in (ResumableStatus.FAILED, ResumableStatus.INTERRUPTED):
            self._conclude(StreamFailed(status, "The stream could not be completed."))
        else:
            # Nothing is missing, so nothing has failed.
            self._failures = 0

    def _conclude(self, failure: StreamIncomplete) -> None:
        cancelled = isinstance(failure, StreamCancelled)
        self._enter(StreamState.STOPPED if cancelled else StreamState.FAILED)
        if not (self.stopping and cancelled):
            self._failure = failure

    def _checked(self, items: list[Item]) -> list[Item]:
        """Look for the event by which a stream says that it did not complete."""
        if not isinstance(self.cursor, EventCursor):
            return items
        for index, item in enumerate(items):
            failure = terminal(item.value)
            if failure is None:
                continue
            if failure.code == "store_unavailable" and self.cursor.undo():
                # This server has lost sight of the stream; it may be well.
                self._heard = False
                self._fail(failure, self.cursor.retry)
                return items[:index]
            self._conclude(failure)
            if not self.raises:
                self._failure = None
                return items[: index + 1]
            return items[:index]
        return items


def replay_url(head: Head) -> str | None:
    """Where an answer can be had again; `None` if it can't."""
    location = head.headers.get("content-location")
    if location is None or "x-stream-epoch" not in head.headers or head.headers.get("content-encoding"):
        return None
    url = urljoin(head.url, location)
    # Credentials are for the server that got them.
    return url if urlsplit(url)[:2] == urlsplit(head.url)[:2] else None


def first_offset(url: str, headers: Mapping[str, str]) -> int | None:
    """Where the answer to a request begins, which may be a replay; `None` if the request does not say."""
    if "last-event-id" in headers:
        return None
    start = parse_qs(urlsplit(url).query).get("from", ["0"])[-1]
    return int(start) if start.isdecimal() else None
