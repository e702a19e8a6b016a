"""One `receive` channel for three: the search for the stream id, the application, and the watch for a disconnect."""

import asyncio
from collections import deque
from contextlib import suppress

from starlette.types import Message, Receive, Scope

DISCONNECT: Message = {"type": "http.disconnect"}


class RequestBody:
    """Shares the `receive` channel of a request.

    What is read before the application runs is kept for it. The application hears of a disconnect only while it still
    waits for a part of the body that the client owes, because it cannot do its work without that.
    """

    is_complete = False
    """Whether all of the body has come."""
    _gone = False
    _failure: Exception | None = None

    def __init__(self, receive: Receive, scope: Scope | None = None) -> None:
        """With the `scope` of a request of which no body was read yet; without it, some or all of it may have been."""
        self._receive = receive
        self._messages: deque[Message] = deque()
        self._scope = scope
        """As long as nothing has come."""
        self._owed = scope is not None
        self._lock = asyncio.Lock()
        self._taken = asyncio.Event()

    def expect(self, scope: Scope) -> None:
        """Note that no body of the request was read."""
        self._scope, self._owed = scope, True

    async def peek(self) -> Message:
        """Read the next message, and keep it for the application."""
        message = await self._pull()
        self._messages.append(message)
        return message

    async def begin(self, timeout: float) -> None:
        """Read the first of a body whose client has said that it sends one: what has come by then is not owed."""
        if self._scope is not None and dict(self._scope["headers"]).get(b"content-length", b"0") != b"0":
            # A middleware may have taken it, so that none comes.
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self.peek()

    async def receive(self) -> Message:
        """Read the next message, a disconnect included, like the server's own `receive`."""
        return self._messages.popleft() if self._messages else await self._pull()

    async def next(self) -> Message | None:
        """The next message for an application that must not see its client leave; `None` if none will come."""
        while not self._messages:
            if self.is_complete:
                return None
            async with self._lock:
                # The watch may have read it while this waited for the lock.
                if not self._messages and not self.is_complete:
                    message = await self._pull()
                    return message if message["type"] != "http.disconnect" or self._owed else None
        self._taken.set()
        return self._messages.popleft()

    @property
    def is_exhausted(self) -> bool:
        """Whether the application has had all of the body."""
        return self.is_complete and not self._messages

    async def disconnected(self) -> None:
        """Wait until the client has gone. Reads ahead of the application by one message at most."""
        while not self._gone:
            # The application has not read what is here. Reading on would take a large upload into memory.
            if self._messages and not self.is_complete:
                self._taken.clear()
                await self._taken.wait()
            else:
                async with self._lock:
                    if self.is_complete:
                        await client_gone(self._pull, is_complete=True)
                    elif not self._gone and not self._messages:
                        message = await self._pull()
                        if message["type"] != "http.disconnect" or self._owed:
                            self._messages.append(message)

    async def _pull(self) -> Message:
        if self._gone:
            return DISCONNECT
        if self._failure is not None:
            raise self._failure
        try:
            message = await self._receive()
        except Exception as exc:
            # A limit of the body's size, say. Asked again, the server might have nothing to say any more.
            self._failure = exc
            raise
        if message["type"] == "http.disconnect":
            self._gone = True
            if self._scope is not None:
                self._owed = _may_have_body(self._scope)
            # A disconnect in mid-upload does not complete the body: the application has to see that it will never come.
            self.is_complete = self.is_complete or not self._owed
        else:
            self._scope = None
            self._owed = message.get("more_body", False)
            self.is_complete = not self._owed
        return message


async def client_gone(receive: Receive, *, is_complete: bool = False) -> None:
    """Wait until the client has gone; pass over what is left of the request's body."""
    while (message := await receive())["type"] != "http.disconnect":
        if is_complete:
            # A middleware that has read the body often puts a `receive` in its place that gives it again and again,
            # and never waits. That tells nothing of the client.
            await asyncio.get_running_loop().create_future()
        is_complete = not message.get("more_body", False)


def _may_have_body(scope: Scope) -> bool:
    """Whether a request announces a body (RFC 9112 §6.3)."""
    headers = dict(scope["headers"])
    length: bytes | None = headers.get(b"content-length")
    if length is not None:
        return length.strip() != b"0"
    # HTTP/2 and HTTP/3 need no header for it.
    in_frames = not scope.get("http_version", "1.1").startswith("1") and scope["method"] != "GET"
    return in_frames or b"transfer-encoding" in headers
