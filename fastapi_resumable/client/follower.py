"""The one loop: makes the requests that the machine asks for, and feeds it what comes.

It is written with `await`, and drives synchronous transports too: those never wait, so `run` gets by without an event
loop.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from .backoff import Backoff, retry_after
from .cursors import Item
from .errors import ConnectionLost, RequestRefused
from .machine import NOT_NOW, Ask, Head, Resumption, StreamState

ResultT = TypeVar("ResultT")


class Reply(Protocol):
    """An answer whose body has not been read."""

    @property
    def head(self) -> Head:
        """Its head."""

    async def read(self) -> bytes | None:
        """The next bytes of the body; `None` at its end."""

    async def read_all(self) -> bytes:
        """The whole body."""

    async def close(self) -> None:
        """Let go of it."""


class Wire(Protocol):
    """What makes requests."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What it raises when the connection is lost, or there is none."""

    async def send(self, ask: Ask) -> Reply:
        """Make a request."""

    async def sleep(self, delay: float) -> None:
        """Wait."""


class Follower:
    """Follows one stream to its end."""

    def __init__(self, wire: Wire, machine: Resumption) -> None:
        self.machine = machine
        self.reply: Reply | None = None
        self._wire = wire

    async def open(self, accept: Callable[[Head], bool] = lambda _: True) -> bool:
        """Connect; return whether the machine has taken the answer. `accept` may keep an answer from it.

        Raises:
            ClientError: There is no way to the stream.
        """
        while (ask := self.machine.ask()) is not None:
            if ask.delay:
                await self._wire.sleep(ask.delay)
            try:
                self.reply = reply = await self._wire.send(ask)
                head = reply.head
                if not accept(head):
                    return False
                body = b"" if head.is_success and ask.method != "HEAD" else await reply.read_all()
                if self.machine.head(head, body):
                    return True
                await self.close()
            except self._wire.errors as exc:
                await self.close()
                self.machine.cut(exc)
            except BaseException:
                await self.close()
                raise
        return False

    async def read(self) -> list[Item]:
        """The next items; none at the end.

        Raises:
            ClientError: The stream has come to a bad end, or cannot be reached any more.
        """
        while True:
            items = self.machine.due()
            if items or self.machine.is_over:
                return items
            if self.reply is not None or await self.open():
                items = await self._read_on()
                if items:
                    return items

    async def _read_on(self) -> list[Item]:
        reply = self.reply
        assert reply is not None
        try:
            chunk = await reply.read()
        except self._wire.errors as exc:
            await self.close()
            self.machine.cut(exc)
            return []
        except BaseException:
            # Interrupted in mid-read, so this connection is of no more use; the next read goes on with another one.
            self.reply = None
            self.machine.interrupted()
            raise
        if chunk is None:
            await self.close()
            return self.machine.end()
        items = self.machine.feed(chunk)
        if self.machine.state is not StreamState.OPEN:
            await self.close()
        return items

    async def close(self) -> None:
        """Let go of the connection."""
        reply, self.reply = self.reply, None
        if reply is not None:
            await reply.close()


async def call(wire: Wire, ask: Ask, backoff: Backoff) -> bytes:
    """Make a request that may be repeated, until it is answered.

    Raises:
        RequestRefused: The answer is final.
        ConnectionLost: There is no answer.
    """
    failures = 0
    while True:
        wait = 0.0
        error: Exception
        try:
            reply = await wire.send(ask)
            try:
                body = await reply.read_all()
            finally:
                await reply.close()
            if reply.head.is_success:
                return body
            error = RequestRefused.read(reply.head.status_code, body)
            if reply.head.status_code not in NOT_NOW:
                raise error
            wait = retry_after(reply.head.headers)
        except wire.errors as exc:
            error = exc
        failures += 1
        if backoff.exhausted(failures):
            raise ConnectionLost(f"Gave up after {failures} attempts in a row: {error}") from error
        await wire.sleep(backoff.delay(failures, wait))


def run(coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Drive a coroutine whose wire never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: ResultT = done.value
        return result
    raise RuntimeError("a synchronous wire has waited")
