"""Runs commands on Redis: again and again, until they succeed or the store has been gone for too long.

Every call may be repeated, so a lost reply is no problem, and no caller waits much longer than `timeout`.
"""

import asyncio
import logging
import math
import random
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, NamedTuple

from redis.asyncio import Redis, RedisCluster
from redis.commands.core import AsyncScript
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    MaxConnectionsError,
    NoScriptError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from ...exceptions import StoreUnavailable
from .scripts import Script

logger = logging.getLogger("fastapi_resumable")

Client = Redis | RedisCluster

PARALLEL = 32
"""How many requests may use Redis at a time, so how many connections they can take."""

BLOCK = 2.0
"""The most seconds for which a read blocks."""

SILENCE = 10.0
"""Seconds for which a refusal that was logged is not logged again."""

UNAVAILABLE = "The store of streams cannot be used. Try again in a moment."
"""What clients get; what is wrong goes to the log."""

_OUT_OF_MEMORY = "command not allowed when used memory"
_PASSING = ("OOM", "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "NOREPLICAS", "MISCONF")


class Call(NamedTuple):
    """One command: a script, or a command by its name."""

    command: Script | str
    keys: Sequence[str | bytes]
    args: Sequence[Any] = ()


class Link:
    """The one way to Redis of a worker, its follower's blocking reads aside."""

    def __init__(self, client: Client, timeout: float) -> None:
        self.client = client
        self.timeout = timeout
        self.is_cluster = isinstance(client, RedisCluster)
        self.attempt = max(0.5, timeout / 4)
        """Seconds after which one attempt is taken for lost."""
        self.on_up: Callable[[], object] = lambda: None
        """Called when Redis answers again."""
        self.up_since = monotonic()
        self.is_closed = False
        pool = client if isinstance(client, RedisCluster) else client.connection_pool
        self.block = min(BLOCK, (pool.connection_kwargs.get("socket_timeout") or math.inf) / 2)
        """Seconds after which a blocking read without news returns; the client has to wait for longer than that."""
        self._scripts: dict[Script, AsyncScript] = {}
        self._down_since: float | None = None
        self._complaint = ""
        self._silent_until = 0.0
        self._slots = asyncio.Semaphore(PARALLEL)

    async def run(self, *calls: Call) -> list[Any]:
        """Run `calls` in one go, when it is their turn, and return their replies.

        Raises:
            StoreUnavailable: Redis has not taken them for `timeout` seconds, or refuses for good.
        """
        if not calls:
            return []
        try:
            async with asyncio.timeout(self.timeout):
                await self._slots.acquire()
        except TimeoutError:
            raise StoreUnavailable("The store of streams is busy. Try again in a moment.") from None
        try:
            return await self.run_now(*calls)
        finally:
            self._slots.release()

    async def run_now(self, *calls: Call) -> list[Any]:
        """The same out of turn: for what streams and the lease live on, which a crowd of requests must not hold up."""
        replies = await self.try_each(*calls)
        for reply in replies:
            if isinstance(reply, StoreUnavailable):
                raise reply
        return replies

    async def try_each(self, *calls: Call) -> list[Any]:
        """Run `calls` out of turn; the reply to one that Redis refuses for good is a `StoreUnavailable`.

        Raises:
            StoreUnavailable: Redis has not taken them for `timeout` seconds.
        """
        begun, delay = monotonic(), 0.02
        while not self.is_closed:
            try:
                async with asyncio.timeout(self.attempt):
                    replies = await self._execute(calls)
                failure = next((reply for reply in replies if isinstance(reply, Exception) and is_passing(reply)), None)
                if failure is None:
                    self.note_up()
                    return [self._refusal(reply) if isinstance(reply, Exception) else reply for reply in replies]
            except Exception as exc:  # noqa: BLE001  # it is handled, whatever it is
                if not is_passing(exc):
                    return [self._refusal(exc)] * len(calls)
                # Anything else counts as an outage: Redis clients and event loops raise more than they document.
                failure = exc
            # An answer, even one that says no, is no outage of the connection.
            gone_since = begun if isinstance(failure, ResponseError) else await self.note_failure(failure)
            if monotonic() + delay > max(min(gone_since, begun) + self.timeout, begun + self.attempt):
                if isinstance(failure, ResponseError):
                    self.complain(failure)
                raise StoreUnavailable(UNAVAILABLE) from failure
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  # no secret
            delay = min(delay * 2, 0.5)
        raise StoreUnavailable("The store is closed.")

    def _refusal(self, failure: Exception) -> StoreUnavailable:
        self.complain(failure)
        refusal = StoreUnavailable(UNAVAILABLE)
        refusal.__cause__ = failure
        return refusal

    def complain(self, failure: Exception) -> None:
        """Log what Redis refuses: not more often than every few seconds, however many requests meet it."""
        reason = explain(failure)
        if monotonic() > self._silent_until or reason != self._complaint:
            self._complaint, self._silent_until = reason, monotonic() + SILENCE
            logger.warning("Redis cannot be used: %s", reason)

    async def note_failure(self, failure: Exception) -> float:
        """Note that an attempt has failed on its way to Redis or back; return since when they do."""
        since = self.note_down(failure)
        if not isinstance(failure, RedisError | OSError | TimeoutError) and not isinstance(self.client, RedisCluster):
            # The client did not expect this, and may keep the broken connection for the next attempt.
            try:
                await self.client.connection_pool.disconnect(inuse_connections=False)
            except Exception:
                logger.exception("idle connections to Redis could not be closed")
        return since

    def note_down(self, failure: Exception) -> float:
        """Note that Redis does not answer; return since when."""
        if self._down_since is None:
            self._down_since = monotonic()
            expected = isinstance(failure, RedisError | OSError | TimeoutError)
            logger.warning("Redis cannot be used: %s", explain(failure), exc_info=None if expected else failure)
        return self._down_since

    def note_up(self) -> None:
        """Note that Redis answers."""
        if self._down_since is not None:
            self.up_since = monotonic()
            logger.warning("Redis is back after %.1f s", self.up_since - self._down_since)
            self._down_since = None
            self.on_up()

    @property
    def is_gone(self) -> bool:
        """Whether Redis has been away for longer than the timeout."""
        return self._down_since is not None and monotonic() - self._down_since > self.timeout

    async def _execute(self, calls: Sequence[Call]) -> list[Any]:
        if self.is_cluster:
            # Each goes to the node of its keys; those for one key, in order.
            replies: list[Any] = [None] * len(calls)
            by_key: dict[str | bytes, list[int]] = {}
            for index, call in enumerate(calls):
                by_key.setdefault(call.keys[0], []).append(index)
            groups = list(by_key.values())
            for start in range(0, len(groups), PARALLEL):
                await asyncio.gather(
                    *(self._execute_in_order(calls, group, replies) for group in groups[start : start + PARALLEL])
                )
            return replies
        if len(calls) == 1:
            return [await self._execute_one(calls[0])]
        pipeline = self.client.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command(*_words(call))
        replies = await pipeline.execute(raise_on_error=False)
        for index, reply in enumerate(replies):
            if isinstance(reply, NoScriptError):
                replies[index] = await self._execute_one(calls[index])
        return replies

    async def _execute_in_order(self, calls: Sequence[Call], indexes: list[int], replies: list[Any]) -> None:
        for index in indexes:
            try:
                replies[index] = await self._execute_one(calls[index])
            except RedisError as exc:
                replies[index] = exc

    async def _execute_one(self, call: Call) -> Any:
        if isinstance(call.command, str):
            return await self.client.execute_command(*_words(call))
        registered = self._scripts.get(call.command)
        if registered is None:
            registered = self._scripts[call.command] = self.client.register_script(call.command.text)
        return await registered(call.keys, call.args)


def _words(call: Call) -> list[Any]:
    if isinstance(call.command, Script):
        return ["EVALSHA", call.command.sha, len(call.keys), *call.keys, *call.args]
    return [call.command, *call.keys, *call.args]


def is_passing(failure: Exception) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(failure, AuthenticationError | AuthorizationError):
        return False
    if isinstance(failure, ResponseError) and not isinstance(failure, ClusterDownError | TryAgainError):
        text = str(failure)
        return text.startswith(_PASSING) or _OUT_OF_MEMORY in text
    return True


def explain(failure: Exception) -> str:
    """Say what is wrong, for the log: it may hold addresses and names, which are not for clients."""
    if isinstance(failure, AuthenticationError | AuthorizationError):
        return f"Redis refuses the login ({failure})"
    if isinstance(failure, ResponseError) and not isinstance(failure, ClusterDownError | TryAgainError):
        if _OUT_OF_MEMORY in str(failure):
            return "Redis is out of memory (maxmemory)"
        return f"Redis refuses a command ({failure})"
    if isinstance(failure, MaxConnectionsError):
        return "all connections of the Redis client are in use; raise its max_connections"
    if isinstance(failure, TimeoutError | RedisTimeoutError):
        return "Redis does not answer"
    return f"Redis cannot be reached ({str(failure) or type(failure).__name__})"
