"""`RedisStore`: the store protocol on Redis. What has to be atomic is a script; what has to be fast is in the site."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

try:
    from redis.asyncio import Redis, RedisCluster
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
except ImportError as exc:
    raise ImportError("RedisStore needs redis-py. Install it: pip install 'fastapi-resumable[redis]'") from exc

from ..._core.ids import StreamKey
from ..._stream.stream import Head, Limits, Stream, WritableStream
from ...exceptions import (
    StoreUnavailable,
    StreamCancelled,
    StreamExists,
    StreamNotFound,
    StreamPending,
    StreamReplaced,
    TooManyStreams,
    TooManyStreamsOfOwner,
)
from ...models import ResumableStatus, ResumableStreamItem
from ..base import OnConflict, Reservation, queued_item
from ..shared.local import LocalStream
from ..shared.remote import RemoteStream
from ..watchers import Notify
from .backend import RedisReader, RedisWriter
from .keys import Keys
from .link import Call, Client
from .scripts import BEGIN, CLAIM, PEEK, STOP
from .site import Site
from .state import State

logger = logging.getLogger("fastapi_resumable")

OnStoreFailure = Literal["degrade", "fail"]

RECHECK = 1.0
"""Seconds after which a request that waits for another one looks again, should it have missed the news."""


class RedisStore:
    """Keeps streams in Redis, for any number of workers and machines that share it.

    `max_streams` and `max_total_bytes` count for each worker, `max_streams_per_owner` over all of them. Needs Redis 6.2
    or newer, or Valkey, set to `maxmemory-policy noeviction`.

    Args:
        url_or_client: A URL (`redis://`, `rediss://`, `unix://`), or a client from `redis.asyncio`, `RedisCluster` too.
            A client is not closed by the store.
        key_prefix: What all keys begin with; two applications on one Redis need different ones.
        lease: Seconds after which a worker that gives no sign of life is taken for dead.
        store_timeout: Seconds for which Redis may be gone before the store gives it up.
        on_store_failure: What happens then: with `degrade`, new requests are answered without being recorded, and live
            streams go on for the readers on their own worker; with `fail`, they are refused, and end with an error.

    Raises:
        ValueError: An argument is wrong; the message says what it must be.
    """

    def __init__(
        self,
        url_or_client: str | Client,
        *,
        key_prefix: str = "fastapi-resumable",
        lease: float = 10.0,
        store_timeout: float = 10.0,
        on_store_failure: OnStoreFailure = "degrade",
    ) -> None:
        if not key_prefix or not isinstance(key_prefix, str):
            raise ValueError(f"key_prefix must be some text, like 'my-app', not {key_prefix!r}.")
        for name, value in (("lease", lease), ("store_timeout", store_timeout)):
            if not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a positive number of seconds, not {value!r}.")
        if on_store_failure not in ("degrade", "fail"):
            raise ValueError(f"on_store_failure must be 'degrade' or 'fail', not {on_store_failure!r}.")
        self._client = url_or_client
        self._keys = Keys(key_prefix)
        self._lease = float(lease)
        self._timeout = float(store_timeout)
        self._degrade = on_store_failure == "degrade"
        self._limits = Limits()
        self._site: Site | None = None
        self._own_client: Redis | None = None
        # Complains of a wrong URL or client now, rather than at the first request.
        _check(self._connect())

    def _connect(self) -> Client:
        if not isinstance(self._client, str):
            return self._client
        try:
            return Redis.from_url(
                self._client,
                protocol=2,
                retry=Retry(NoBackoff(), 0),
                socket_timeout=None,
                socket_connect_timeout=self._timeout,
                max_connections=None,
            )
        except ValueError:
            # Neither the URL nor what redis-py says of it: both may hold a password.
            raise ValueError(
                "store must be a URL like redis://localhost:6379/0 (or rediss://, or unix://), with options that"
                f" redis-py takes; the one given begins with {self._client.partition(':')[0][:10]!r}."
            ) from None

    @property
    def held_bytes(self) -> int:
        """How many bytes this process holds: the logs of the streams that it writes or follows."""
        return 0 if self._site is None else self._site.budget.used

    def configure(self, limits: Limits) -> None:
        """Take the limits."""
        self._limits = limits

    def _here(self) -> Site:
        """The site of the running event loop."""
        loop = asyncio.get_running_loop()
        if self._site is None or self._site.loop is not loop:
            client = self._connect()
            self._own_client = client if isinstance(self._client, str) and isinstance(client, Redis) else None
            self._site = Site(
                client, self._keys, self._limits, lease=self._lease, timeout=self._timeout, degrade=self._degrade
            )
        return self._site

    # Starting.

    async def reserve(self, reservation: Reservation, on_conflict: OnConflict) -> Stream | None:
        """Queue a request, or return the stream it is to follow."""
        site = self._here()
        try:
            return await self._reserve(site, reservation, on_conflict)
        except StoreUnavailable as exc:
            exc.degrade = self._degrade
            raise

    async def _reserve(self, site: Site, reservation: Reservation, on_conflict: OnConflict) -> Stream | None:
        await site.start()
        reservation.requested_at = site.now()
        try:
            return await self._queue(site, reservation, on_conflict)
        except BaseException:
            await self.release(reservation)
            raise

    async def _queue(self, site: Site, reservation: Reservation, on_conflict: OnConflict) -> Stream | None:
        key, epoch = reservation.key, reservation.epoch
        while True:
            site.pending_reserves[epoch] = reservation
            word, *about = (await site.link.run(*site.index(key), site.queue(reservation, on_conflict)))[-1]
            unstopped = site.pending_reserves.pop(epoch, None)
            if word == b"queued":
                break
            rival, worker = about[0].decode(), about[1].decode()
            if worker and await site.lease.dead([worker]):
                await site.reap_dead([(key, worker)])
            elif word == b"exists":
                raise StreamExists
            else:
                state = await reservation.wait(self._wait_for(site, key, rival))
                if state.epoch == rival:
                    # It may have ended already: that is what was waited for all the same.
                    return self._open(site, state)
        if unstopped is None:
            return None
        site.reservations[epoch] = reservation
        replaced = int(about[0])
        self._check_limits(site, allowed=replaced)
        await self._claim(site, reservation, allowed=replaced)
        await site.announce(key, queued_item(key, epoch, reservation.requested_at))
        return None

    def _check_limits(self, site: Site, allowed: int) -> None:
        limits = self._limits
        live = len(site.reservations) + sum(not stream.closed for stream in site.streams.values())
        if live > limits.max_streams + allowed:
            raise TooManyStreams("The server has as many live streams as it takes. Try again in a moment.")
        if site.budget.used >= limits.max_total_bytes:
            raise TooManyStreams("The server's memory for streams is full. Try again in a moment.")

    async def _claim(self, site: Site, reservation: Reservation, allowed: int) -> None:
        owner, most = reservation.key.owner, self._limits.max_streams_per_owner
        if owner is None or most is None:
            return
        name = self._keys.owner(owner)
        call = Call(CLAIM, [name], [reservation.epoch, site.worker, most + allowed, site.ttl])
        while True:
            (reply,) = await site.link.run(call)
            if not reply:
                return
            counted = dict(zip(reply[::2], reply[1::2], strict=True))
            dead = await site.lease.dead({worker.decode() for worker in counted.values()})
            gone = [epoch for epoch, worker in counted.items() if worker.decode() in dead]
            if not gone:
                raise TooManyStreamsOfOwner(f"You have {most} live streams, which is the limit. Stop one, or wait.")
            await site.link.run(Call("HDEL", [name], gone))

    async def begin(self, reservation: Reservation, head: Head) -> WritableStream:
        """Make the reservation the current epoch."""
        site, key, epoch = self._here(), reservation.key, reservation.epoch
        name = self._keys.stream(key)
        backend = RedisWriter(site, key, epoch)
        stream = LocalStream(
            backend,
            key,
            epoch,
            head,
            limits=site.limits,
            budget=site.budget,
            now=site.now,
            idempotency_key=reservation.idempotency_key,
            on_stop=reservation.on_stop,
        )
        backend.belongs_to(stream)
        dumped, sse, started, idem = site.describe(stream)
        call = Call(
            BEGIN,
            [name],
            [epoch, site.worker, dumped, sse, started, idem, site.ttl, site.retention, site.now()],
        )
        try:
            word, *about = await self._begin(site, reservation, call)
        except StoreUnavailable as exc:
            if not self._degrade:
                raise
            if reservation.stop_code is not None:
                raise StreamReplaced if reservation.stop_code == "replaced" else StreamCancelled from exc
            event = site.terminal(ResumableStatus.CANCELLED, "replaced")
            stream.begin_later(exc, call._replace(args=[*call.args, *event]))
            about = []
        else:
            if word == b"stopped":
                site.handle_message("stop", epoch, about.pop().decode())
        await site.tell_ended(key, about, "replaced")
        if reservation.stop_code is not None:
            await site.free(key, epoch)
            raise StreamReplaced if reservation.stop_code == "replaced" else StreamCancelled
        site.reservations.pop(epoch, None)
        site.streams[epoch] = stream
        try:
            await site.announce(key, stream.item)
        except BaseException:
            # The caller is cancelled, and will never have the stream.
            site.forget(stream)
            site.abandon(name, epoch)
            site.spawn(site.free(key, epoch), "resumable free")
            raise
        return stream

    async def _begin(self, site: Site, reservation: Reservation, call: Call) -> list[Any]:
        before, reply = await site.end([Call(PEEK, call.keys), call], ResumableStatus.CANCELLED, "replaced")
        await site.announce_end(State(reservation.key, before), reply[2::2])
        if reply[0] == b"unknown" and reservation.epoch in site.reservations:
            # Redis has lost the queue; nobody has stopped us.
            _, reply = await site.link.run(site.queue(reservation, "replace"), call)
        return [b"stopped", b"cancelled"] if reply[0] == b"unknown" else list(reply)

    async def release(self, reservation: Reservation) -> None:
        """Give a reservation back."""
        site = self._here()
        key, epoch = reservation.key, reservation.epoch
        if site.reservations.pop(epoch, None) is not None:
            # In a task of its own: nobody would do it again if the caller were cancelled.
            await asyncio.shield(site.spawn(self._release(site, reservation), "resumable release"))
        elif epoch in site.stopped or site.pending_reserves.pop(epoch, None) is not None:
            site.stopped.discard(epoch)
            site.cancel_reservation(key, epoch)

    async def _release(self, site: Site, reservation: Reservation) -> None:
        key, epoch = reservation.key, reservation.epoch
        try:
            call = site.release(self._keys.stream(key), epoch)
            await site.end([call], ResumableStatus.INTERRUPTED, "producer_lost")
        except StoreUnavailable:
            site.cancel_reservation(key, epoch)
        await site.free(key, epoch)
        await site.announce(key, reservation.ended(ResumableStatus.FAILED, site.now()))
        await site.announce_rest(key)

    async def finish(self, stream: WritableStream, status: ResumableStatus, code: str, message: str) -> None:
        """End a stream; it expires after the retention."""
        if stream.closed:
            return
        assert isinstance(stream, LocalStream)
        assert isinstance(stream.backend, RedisWriter)
        site = stream.backend.site
        stream.end(status, code, message, site.now())
        await stream.settled()
        await site.free(stream.key, stream.epoch)
        await site.announce(stream.key, stream.item)

    # Looking.

    def _open(self, site: Site, state: State) -> Stream:
        """The stream as it is read here."""
        recorded = site.streams.get(state.epoch)
        if recorded is not None:
            recorded.note_recorded(state.tail)
            return recorded
        view = site.views.get(state.epoch)
        if view is None or view.failure is not None:
            backend = RedisReader(site, state.key, state.epoch)
            view = backend.belongs_to(RemoteStream(backend, state.remote, limits=site.limits, budget=site.budget))
            site.views[state.epoch] = view
        else:
            view.update(state.remote)
        return view

    async def _wait_for(self, site: Site, key: StreamKey, rival: str) -> State:
        """Wait until a request is queued no longer.

        Raises:
            StreamCancelled: It was stopped, before it began or after that.
            StreamReplaced: A newer one has begun, likewise.
        """

        def is_over(state: State) -> bool:
            return all(queued.epoch != rival for queued in state.queued)

        while (state := await self._change(site, key, RECHECK, is_over)) is None:
            pass
        if (code := state.stopped.get(rival)) is not None:
            raise StreamReplaced if code == "replaced" else StreamCancelled
        return state

    async def _change(
        self, site: Site, key: StreamKey, timeout: float, is_over: Callable[[State], bool]
    ) -> State | None:
        """Wait until the state of `key` is as asked for; `None` if it was not in time."""
        (state,) = await site.peek(key)
        if is_over(state):
            return state
        changed = asyncio.Event()
        unsubscribe = await site.subscribe(key.owner, [key.id], lambda _: changed.set())
        deadline = site.loop.time() + timeout
        try:
            while True:
                (state,) = await site.peek(key)
                if is_over(state):
                    return state
                left = deadline - site.loop.time()
                if left <= 0:
                    return None
                try:
                    async with asyncio.timeout(min(left, RECHECK)):
                        await changed.wait()
                except TimeoutError:
                    pass
                changed.clear()
        finally:
            unsubscribe()

    async def find(self, key: StreamKey, timeout: float, *, live: bool = False) -> Stream:
        """Return the current epoch, after waiting for one that is queued."""
        site = self._here()

        def is_here(state: State) -> bool:
            return not state.queued or (bool(state.epoch) and not (live and state.is_final))

        try:
            state = await self._change(site, key, timeout, is_here)
        except StoreUnavailable:
            local = next((stream for stream in site.streams.values() if stream.key == key), None)
            if local is None:
                raise
            return local
        if state is None:
            raise StreamPending
        if not state.epoch:
            raise StreamNotFound
        if state.is_final:
            # Only so that others hear of its readers; it can be read without that.
            site.start_soon()
        else:
            await site.start()
        return self._open(site, state)

    async def lookup(self, owner: str | None, ids: Sequence[str]) -> list[ResumableStreamItem]:
        """Return the streams with these `ids`, each once, in the order asked for."""
        site = self._here()
        asked = list(dict.fromkeys(ids))
        if not asked:
            return []
        longer = await site.link.run(
            *(Call("ZRANGE", [self._keys.variants(StreamKey(owner, stream_id))], [0, -1]) for stream_id in asked)
        )
        wanted = dict.fromkeys(
            name
            for stream_id, found in zip(asked, longer, strict=True)
            for name in (stream_id, *(member.decode("utf-8", "surrogatepass") for member in found))
        )
        states = await site.peek(*(StreamKey(owner, stream_id) for stream_id in wanted))
        return [state.item for state in states if not state.is_empty]

    async def watch(self, owner: str | None, ids: Sequence[str], notify: Notify) -> Callable[[], None]:
        """Call `notify` at every change of the owner's streams that go by `ids`."""
        return await self._here().subscribe(owner, ids, notify)

    # Stopping.

    async def stop(self, key: StreamKey, epoch: str | None) -> None:
        """Stop what is queued or live, forget what has ended."""
        site = self._here()
        name = [self._keys.stream(key)]
        calls = [Call(PEEK, name), Call(STOP, name, [epoch or "", site.ttl, site.now(), site.retention])]
        try:
            await site.start()
            before, told = await site.end(calls, ResumableStatus.CANCELLED, "cancelled")
        except StoreUnavailable:
            # What runs here can be stopped all the same; Redis is told when it is back.
            mine = [stream for stream in site.streams.values() if stream.key == key and epoch in (None, stream.epoch)]
            if not mine:
                raise
            for stream in mine:
                stream.stop_here()
            return
        if told:
            await site.tell_ended(key, told, "cancelled")
            await site.announce_end(State(key, before), told[1::2])
            await site.announce_rest(key)

    async def aclose(self) -> None:
        """Give back the lease and the connections; streams stay in Redis."""
        site, client = self._site, self._own_client
        self._site = self._own_client = None
        if site is not None and site.loop is asyncio.get_running_loop():
            await site.aclose()
            if client is not None:
                await client.aclose()


def _check(client: object) -> None:
    if not isinstance(client, Redis | RedisCluster):
        raise ValueError(  # noqa: TRY004  # as for every other wrong setting
            "store must be a URL like redis://localhost:6379/0, or a client from redis.asyncio,"
            f" not a {type(client).__name__}."
        )
    pool = client if isinstance(client, RedisCluster) else client.connection_pool
    if pool.connection_kwargs.get("decode_responses"):
        raise ValueError("The Redis client decodes responses, but streams are bytes: leave decode_responses out.")
