"""What a client does next to get the whole of a stream, each byte once: pure decisions, no I/O.

The engine asks for the next request (`ask`), and reports what became of it: `head`, then `feed`, then `end` or `cut`;
or `cut` at once. Each of them may raise a `ClientError`, if there is nothing to be asked for any more. Invariant: the
next request goes on exactly after the last byte that was fed.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Literal
from urllib.parse import urlencode

import httpx

from ..exceptions import ConnectionLost, StreamCancelled, StreamFailed, StreamIncomplete
from ..models import ResumableStatus
from .messages import Ask, Backoff, is_replay, origin, refusal, replay_url, retry_after, whole_number

NOT_NOW = frozenset({408, 425, 429, 502, 503, 504})
"""Answers to a request that has not begun yet, and may later."""
NOT_HEAD = frozenset({405, 501})
"""Answers of a server, or a proxy, that does not know HEAD."""
NO_PLACE = frozenset({400, 416})
"""Answers of the server to a place that it no longer has, or does not have yet."""
_BAD_ENDS: Mapping[str, type[StreamIncomplete]] = {
    ResumableStatus.CANCELLED: StreamCancelled,
    ResumableStatus.FAILED: StreamFailed,
    ResumableStatus.INTERRUPTED: StreamFailed,
}
MAX_RETRY = 10**9
"""Milliseconds; so that what a stream asks for is a number of seconds, before it is clipped."""
WITHHELD = (
    "{} is another origin than that of the first request, so it got none of the credentials. "
    "Send the request to that origin itself, if it may have them"
)


class StreamState(StrEnum):
    """Where a client is with a stream. The last five are final."""

    CONNECTING = "connecting"
    """The request that begins the stream is under way."""
    OPEN = "open"
    """Connected: bytes come."""
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


class Resumption:
    """The state of one client of one stream."""

    def __init__(
        self,
        backoff: Backoff,
        url: str,
        offset: int | None = 0,
        on_state: Callable[[StreamState], object] | None = None,
    ) -> None:
        """`url` is that of the first request; `offset` where its answer begins, `None` if that is not known."""
        self.state = StreamState.CONNECTING
        self.stopping = False
        """Whether it is this client that stops the stream."""
        self.is_stopped = False
        """Whether the server has confirmed that, so that there is nothing to come back for."""
        self.replay_url: str | None = None
        self.epoch: str | None = None
        self.knows_offset = offset is not None
        """Whether an answer that is cut can be gone on with at an offset."""
        self.may_be_start = True
        """Whether the answer begins at 0 if its URL turns out not to be that of a replay."""
        self.offset = offset or 0
        """The position right after the last byte."""
        self._home = origin(url)
        self._trusted = True
        self._on_state = on_state
        self._backoff = backoff
        self._retry = self._delay = 0.0
        self._failures = 0
        self._begun = self._is_event_stream = False
        self._before = self.offset
        """Where this connection began, so that it is known whether it brought anything."""
        self._probe: Literal["silence", "end"] | None = None
        """Why the next request asks how the stream is, instead of for its bytes."""
        self._may_probe = True
        self._failure: StreamIncomplete | None = None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to ask for."""
        return self.state not in (StreamState.CONNECTING, StreamState.OPEN, StreamState.RECONNECTING)

    def ask(self) -> Ask | None:
        """The next request; `None` if there is none."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if self.is_stopped and not self.is_over:
            self._enter(StreamState.STOPPED)
        if self.is_over:
            return None
        delay, self._delay = self._delay, 0.0
        if self.replay_url is None:
            return Ask(delay)
        return self._replay(delay, "HEAD" if self._probe else "GET", {"from": self.offset})

    def stop(self) -> Ask:
        """The request that stops the stream."""
        if self.replay_url is None:
            raise RuntimeError("The server does not keep this stream, so it cannot be stopped. Close it instead.")
        self.stopping = True
        return self._replay(0.0, "DELETE", {})

    def head(self, head: httpx.Response, body: bytes = b"") -> bool:
        """Take the head of an answer, and the `body` if it is no success; return whether a body is to be read."""
        probe, self._probe = self._probe, None
        if probe is None:
            self._before = self.offset
        if not head.is_success:
            self._refused(head, body, probe)
            return False
        encoded = probe is None and head.headers.get("content-encoding")
        if self._begun and (encoded or head.headers.get("x-stream-epoch") != self.epoch):
            # The sign-in page of a network is a 200 as well, and would be delivered as a part of the stream; and so
            # would be what a proxy has compressed.
            self.cut(ConnectionError(f"{origin(head.url)} answered with something else than the stream"))
            return False
        if probe is not None:
            self._probed(head.headers, has_ended=probe == "end")
            return False
        if not self._begun:
            self._begin(head)
            if self.replay_url is not None and "respond-async" in head.headers.get("preference-applied", ""):
                # An answer about the stream, and not the stream.
                return False
        self._enter(StreamState.OPEN)
        return True

    def feed(self, chunk: bytes) -> None:
        """Take a part of the body."""
        self.offset += len(chunk)

    def end(self) -> None:
        """Take the end of the body. It need not be the stream's: proxies end a response in order when they lose it."""
        # Where the server cannot be asked, the end of the response is the best that there is.
        if self.replay_url is not None and self._may_probe:
            self._probe = "end"
        else:
            self._enter(StreamState.STOPPED if self.stopping else StreamState.DONE)

    def cut(self, error: Exception) -> None:
        """Take the loss of the connection, or the failure to make one."""
        # A repetition of the first request would run the endpoint again, and what has been delivered would come twice.
        if self._begun and self.replay_url is None:
            self._enter(StreamState.LOST)
            raise ConnectionLost(
                "The connection broke, and the answer cannot be resumed: it names no Content-Location and "
                "X-Stream-Epoch. Is the endpoint resumable, and the router included?"
            ) from error
        self._fail(error)

    def give_up(self, error: Exception) -> ConnectionLost:
        """Take an error that another attempt would not mend; return what to raise."""
        self._enter(StreamState.LOST)
        return ConnectionLost(f"The request could not be made, or its answer could not be read: {error}")

    def interrupted(self) -> None:
        """Take the loss of the connection because the caller was interrupted; it is no failure."""
        # Without a replay there is nothing to go on with.
        if self._begun and self.replay_url is None:
            self.detach()
        elif not self.is_over:
            self._enter(StreamState.RECONNECTING if self._begun else StreamState.CONNECTING)

    def detach(self) -> None:
        """The caller wants no more of it."""
        if not self.is_over:
            self._enter(StreamState.DETACHED)

    # What the events of the stream say.

    def wait_at_least(self, milliseconds: int) -> None:
        """The stream asks its clients to wait so long before they come back (`retry:`)."""
        # Clipped here, because a number of thousands of digits does not fit into a float.
        self._retry = min(max(milliseconds, 0), MAX_RETRY) / 1000

    def conclude(self, failure: StreamIncomplete) -> StreamIncomplete | None:
        """The stream has ended, and did not complete; return what to raise: nothing if this client has stopped it."""
        # The caller that has stopped the stream expects its loop to end; for all others the answer is not complete.
        cancelled = isinstance(failure, StreamCancelled)
        self._enter(StreamState.STOPPED if cancelled else StreamState.FAILED)
        return None if self.stopping and cancelled else failure

    # What follows from it.

    def _replay(self, delay: float, method: str, query: Mapping[str, object]) -> Ask:
        separator = "&" if "?" in str(self.replay_url) else "?"
        # With the epoch, so that a newer run of the id is refused (409) and never spliced to what has come of this one.
        url = f"{self.replay_url}{separator}{urlencode({'epoch': self.epoch, **query})}"
        return Ask(delay, method, url, self._trusted)

    def _enter(self, state: StreamState) -> None:
        if state is not self.state:
            self.state = state
            if self._on_state is not None:
                self._on_state(state)

    def _begin(self, head: httpx.Response) -> None:
        self._begun = True
        self._is_event_stream = "text/event-stream" in head.headers.get("content-type", "")
        self.epoch = head.headers.get("x-stream-epoch")
        # An answer that begins at an unknown offset could only be resumed at a wrong place.
        self.replay_url = replay_url(head) if self.knows_offset else None
        if self.may_be_start and self.replay_url is not None and not is_replay(head.url, self.replay_url):
            self.offset = self._before = 0
        # Both: a server that we were redirected to has no say in what is asked of the first one in our name.
        self._trusted = self.replay_url is None or {origin(head.url), origin(self.replay_url)} == {self._home}

    def _fail(self, error: Exception, asked: float = 0.0) -> None:
        # A connection that has brought a byte was progress, so the count of attempts in a row begins again.
        is_progress, self._before = self.offset > self._before, self.offset
        self._failures = 1 if is_progress else self._failures + 1
        # Connected, and not a byte: the stream may be silent; or it broke off, and has no event to say so.
        if self._may_probe and self.state is StreamState.OPEN and not is_progress:
            self._probe = "silence"
        if self._backoff.exhausted(self._failures):
            self._enter(StreamState.LOST)
            raise ConnectionLost(f"Gave up after {self._failures} attempts in a row: {error}") from error
        self._enter(StreamState.RECONNECTING if self._begun else StreamState.CONNECTING)
        self._delay = self._backoff.delay(self._failures, max(self._retry, asked))

    def _refused(self, head: httpx.Response, body: bytes, probe: str | None) -> None:
        status = head.status_code
        if probe is not None and status in NO_PLACE:
            # Bytes are missing, and only the answer to a GET has a body that says why.
            self._may_probe = False
            return
        # An endpoint that fails at the start would fail again, at a price; a replay route that fails may recover.
        is_passing = status in NOT_NOW or (self._begun and status >= 500)
        knows_no_head = probe is not None and status in NOT_HEAD
        self._may_probe = self._may_probe and not knows_no_head
        # A stopped stream is forgotten at once, so a reconnection after the stop finds no stream, or a newer one.
        if self.stopping and status in (404, 409):
            self._enter(StreamState.STOPPED)
        elif probe == "end" and (knows_no_head or not (is_passing or status == 404)):
            # Nothing is known but that the response has ended in order.
            self._enter(StreamState.STOPPED if self.stopping else StreamState.DONE)
        elif not knows_no_head:
            # So that the error names the cause: a 401 without credentials looks like a wrong key.
            withheld = not self._trusted or origin(head.url) != self._home
            refused = refusal(status, body, WITHHELD.format(origin(head.url)) if withheld else "")
            if not is_passing:
                self._enter(StreamState.LOST)
                raise refused
            self._fail(refused, retry_after(head.headers))

    def _probed(self, headers: Mapping[str, str], *, has_ended: bool) -> None:
        """Tell the end of the stream from a stream that is silent, and from one that goes on elsewhere."""
        status = headers.get("x-stream-status", "")
        total = whole_number(headers.get("x-stream-total-bytes"))
        is_all = total == self.offset or (has_ended and total is None)
        if is_all and (status == ResumableStatus.COMPLETED or (has_ended and not status)):
            self._enter(StreamState.DONE)
        elif is_all and status in _BAD_ENDS:
            failure = self.conclude(_BAD_ENDS[status](status, "The stream did not complete."))
            # An event stream has said so in its last event.
            self._failure = None if has_ended and self._is_event_stream else failure
        else:
            if is_all:
                # Nothing is missing, so nothing has failed.
                self._failures = 0
            if has_ended:
                self._fail(ConnectionError("the response has ended before the stream"))
                self._probe = None
