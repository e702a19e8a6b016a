"""Runs commands on Redis: again and again, until they succeed or the store has been gone for too long.

Every call may be repeated, so a lost reply is no problem, and no caller waits much longer than `timeout`.
"""

import asyncio
import logging
import math
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, TypeVar

from redis.asyncio import Redis, RedisCluster
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
from redis.exceptions import TimeoutError as RedisTimeoutError

from ...exceptions import StoreUnavailable
from ..shared.outage import UNAVAILABLE, Outage
from .calls import Call, Calls, Script, lacks_event

logger = logging.getLogger("fastapi_resumable")

Client = Redis | RedisCluster
T = TypeVar("T")

PARALLEL = 32
"""How many requests may use Redis at a time, so how many connections they can take."""
BLOCK = 2.0
"""The most seconds for which a read blocks."""
SILENCE = 10.0
"""Seconds for which a refusal that was logged is not logged again."""
TOGETHER = 64
"""How many streams are written by one call, and how many calls are made in one go for a request: it may ask for a
thousand streams, and nothing else runs while redis-py reads replies that are there already."""

_EXPECTED = (RedisError, OSError, TimeoutError)
_OUT_OF_MEMORY = "command not allowed when used memory"
_READ_ONLY = "write against a read only replica"
# To a script: while a Cluster moves a slot, its keys are at two nodes; and it is down while no node has them.
_NOT_HERE = "attempted to access a non local key|attempted to access a slot not served|while the cluster is down"
# Redis 6.2 wraps what is refused inside a script. For some refusals redis-py has classes, and takes their code away.
_PASSING = re.compile(
    rf"(^|-)(LOADING|MASTERDOWN|BUSY|NOREPLICAS|MISCONF|UNBLOCKED) |{_OUT_OF_MEMORY}|{_READ_ONLY}|{_NOT_HERE}"
)


class Link:
    """The one way to Redis of a worker, its listener's blocking reads aside."""

    def __init__(self, client: Client, calls: Calls, timeout: float, on_up: Callable[[], object]) -> None:
        """`on_up` is called when Redis answers again."""
        self.client = client
        self._calls = calls
        self.is_cluster = isinstance(client, RedisCluster)
        self.is_closed = False
        self.outage = Outage(timeout, "Redis cannot be used: %s", "Redis is back after %.1f s", on_up)
        pool = client if isinstance(client, RedisCluster) else client.connection_pool
        # redis-py takes a read that blocks for longer than its `socket_timeout` for a dead connection.
        self.block = min(BLOCK, (pool.connection_kwargs.get("socket_timeout") or math.inf) / 2)
        """Seconds after which a blocking read without news returns; the client has to wait for longer than that."""
        self._scripts = {script: client.register_script(script.text) for script in Script}
        self._logged_at: dict[str, float] = {}
        """When each reason for which Redis cannot be used was last logged."""
        self._slots = asyncio.Semaphore(PARALLEL)

    async def run(self, *calls: Call) -> list[Any]:
        """Run `calls`, a part of them in one go, when it is that part's turn, and return their replies.

        Raises:
            StoreUnavailable: Redis has not taken them for `timeout` seconds, or refuses for good.
        """
        replies: list[Any] = []
        for part in in_parts(calls):
            # Waiting for a turn counts, too: a crowd of requests must not wait behind one another without a bound.
            async with self.in_time():
                await self._slots.acquire()
            try:
                replies += await self.run_now(*part)
            finally:
                self._slots.release()
        return replies

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Give up what takes longer than `timeout`, although Redis may answer: it raises `StoreUnavailable` then."""
        try:
            async with asyncio.timeout(self.outage.timeout):
                yield
        except TimeoutError:
            raise StoreUnavailable("The store of streams is busy. Try again in a moment.") from None

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
        begun, attempts = monotonic(), 0
        while not self.is_closed:
            try:
                replies = await within(self.outage.attempt, self._execute_whole(calls))
                failure = next((reply for reply in replies if isinstance(reply, Exception) and is_passing(reply)), None)
                if failure is None:
                    self.outage.note_up()
                    return [self._refusal(reply) if isinstance(reply, Exception) else reply for reply in replies]
            except Exception as exc:  # noqa: BLE001  # it is handled, whatever it is
                if not is_passing(exc):
                    return [self._refusal(exc)] * len(calls)
                # Anything else counts as an outage: Redis clients and event loops raise more than they document.
                failure = exc
            # An answer, even one that says no, is no outage of the connection.
            is_answer = isinstance(failure, ResponseError)
            since = begun if is_answer else self.note_failure(failure)
            await self.leave_broken_connections(failure)
            if not await self.outage.pause(begun, since, attempts):
                if is_answer:
                    self.complain(failure)
                raise StoreUnavailable(UNAVAILABLE) from failure
            attempts += 1
        raise StoreUnavailable("The store is closed.")

    async def run_batch(self, calls: Sequence[Call]) -> list[Any]:
        """Run `calls` as `try_each` does; those that append go together, as many streams in one call as may be."""
        # In a Cluster, a script is for streams of one slot. Redis does nothing else while a script runs.
        together = 1 if self.is_cluster else TOGETHER
        appends = [call for call in calls if call.command is Script.APPEND]
        others = [call for call in calls if call.command is not Script.APPEND]
        groups = list(in_parts(appends, together))
        replies = await self.try_each(*map(_join, groups), *others)
        appended: list[Any] = []
        for group, reply in zip(groups, replies, strict=False):
            if isinstance(reply, StoreUnavailable):
                # One of these streams may be to blame: each alone shows which, and the others go on.
                alone = await self.try_each(*group) if len(group) > 1 else [reply]
                appended += (each if isinstance(each, StoreUnavailable) else each[0] for each in alone)
            else:
                appended += reply
        written, done = iter(appended), iter(replies[len(groups) :])
        return [next(written if call.command is Script.APPEND else done) for call in calls]

    def _refusal(self, failure: Exception) -> StoreUnavailable:
        self.complain(failure)
        refusal = StoreUnavailable(UNAVAILABLE)
        refusal.__cause__ = failure
        return refusal

    def complain(self, failure: Exception) -> None:
        """Log what Redis refuses: not more often than every few seconds, however many requests meet it."""
        # Redis quotes the words of a command that it does not know: AUTH's are the user and the password.
        failure.args = (str(failure).partition(", with args beginning with")[0],)
        reason = explain(failure)
        now = monotonic()
        if self._logged_at.get(reason, -SILENCE) < now - SILENCE:
            self._logged_at = {each: at for each, at in self._logged_at.items() if at > now - SILENCE} | {reason: now}
            logger.warning("Redis cannot be used: %s", reason)

    async def leave_broken_connections(self, failure: Exception) -> None:
        """Have the next attempt make a new connection, if a connection that is still open may be to blame."""
        # The client may keep what broke in a way that it did not expect. And a server that is no primary any more keeps
        # its connections, whatever server the address leads to by now.
        if (isinstance(failure, _EXPECTED) and _READ_ONLY not in str(failure)) or isinstance(self.client, RedisCluster):
            return
        try:
            await self.client.connection_pool.disconnect(inuse_connections=False)
        except Exception:
            logger.exception("idle connections to Redis could not be closed")

    def note_failure(self, failure: Exception) -> float:
        """Note that Redis cannot be used; return since when."""
        return self.outage.note_down(explain(failure), None if isinstance(failure, _EXPECTED) else failure)

    async def _execute_whole(self, calls: Sequence[Call]) -> list[Any]:
        replies = await self._execute(calls)
        while lacking := [index for index, call in enumerate(calls) if lacks_event(call, replies[index])]:
            again = [self._calls.give_event(calls[index], replies[index]) for index in lacking]
            for index, reply in zip(lacking, await self._execute(again), strict=True):
                replies[index] = reply
        return replies

    async def _execute(self, calls: Sequence[Call]) -> list[Any]:
        if self.is_cluster:
            return await self._execute_by_key(calls)
        if len(calls) == 1:
            return [await self._execute_one(calls[0])]
        # Each script is atomic by itself, and a transaction would hold up all others for the whole batch.
        pipeline = self.client.pipeline(transaction=False)
        for call in calls:
            if isinstance(call.command, Script):
                pipeline.evalsha(self._scripts[call.command].sha, len(call.keys), *call.keys, *call.args)
            else:
                pipeline.execute_command(call.command, *call.keys, *call.args)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        # A Redis that was restarted has forgotten its scripts. Only this call is repeated: those after it have been
        # run.
        for index, reply in enumerate(replies):
            if isinstance(reply, NoScriptError):
                replies[index] = await self._execute_one(calls[index])
        return replies

    async def _execute_by_key(self, calls: Sequence[Call]) -> list[Any]:
        """Run each call at the node of its keys; those for one key in order, and some keys at a time."""
        replies: list[Any] = [None] * len(calls)
        by_key: dict[str | bytes, list[int]] = {}
        for index, call in enumerate(calls):
            by_key.setdefault(call.keys[0], []).append(index)

        async def execute(indexes: Sequence[int]) -> None:
            for index in indexes:
                replies[index] = await self._execute_one(calls[index])

        groups = list(by_key.values())
        for start in range(0, len(groups), PARALLEL):
            await asyncio.gather(*map(execute, groups[start : start + PARALLEL]))
        return replies

    async def _execute_one(self, call: Call) -> Any:
        """The reply to a call, which is the exception if there was one."""
        try:
            if isinstance(call.command, Script):
                # redis-py's own script object loads a script that Redis does not know, and repeats the call.
                return await self._scripts[call.command](call.keys, call.args)
            return await self.client.execute_command(call.command, *call.keys, *call.args)
        except Exception as exc:  # noqa: BLE001  # the calls beside this one go on
            return exc


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Do some work with redis-py, which by itself waits for a reply without a bound.

    Raises:
        TimeoutError: It takes longer than `seconds`.
    """
    task = asyncio.current_task()
    assert task is not None
    cancelled = task.cancelling()
    async with asyncio.timeout(seconds):
        result = await work
        # Where a client has a `socket_timeout`, redis-py sends by `asyncio.wait_for`, which on Python 3.11 loses a
        # cancellation that comes in the moment in which all is sent.
        if task.cancelling() > cancelled:
            raise asyncio.CancelledError
    return result


def in_parts(items: Sequence[T], size: int = TOGETHER) -> Iterator[Sequence[T]]:
    """Cut a sequence into parts that are dealt with one after the other."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _join(calls: Sequence[Call]) -> Call:
    return Call(
        Script.APPEND, [key for call in calls for key in call.keys], [word for call in calls for word in call.args]
    )


def is_passing(failure: Exception) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(failure, AuthenticationError | AuthorizationError):
        return False
    # Scripts may be flushed again between loading one and running it.
    if isinstance(failure, ResponseError) and not isinstance(failure, ClusterDownError | TryAgainError | NoScriptError):
        return _PASSING.search(str(failure)) is not None
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
