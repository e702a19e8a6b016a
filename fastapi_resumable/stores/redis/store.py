"""`RedisStore`: the store protocol on Redis."""

try:
    from redis.asyncio import Redis, RedisCluster
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
except ImportError as exc:
    raise ImportError("RedisStore needs redis-py. Install it: pip install 'fastapi-resumable[redis]'") from exc

from ..shared.backend import SharedBackend
from ..shared.store import OnStoreFailure, SharedStore, check_seconds
from .backend import RedisBackend
from .keys import Keys
from .link import Client


class RedisStore(SharedStore):
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
        check_seconds("lease", lease)
        super().__init__(store_timeout, on_store_failure)
        self._client = url_or_client
        self._keys = Keys(key_prefix)
        self._lease = float(lease)
        # Complains of a wrong URL or client now, rather than at the first request.
        _check(self._connect())

    def _connect(self) -> Client:
        if not isinstance(self._client, str):
            return self._client
        try:
            return Redis.from_url(
                self._client,
                # RESP2 is what Redis 6.2 and all proxies speak, and it gives replies one form.
                protocol=2,
                # `Link` repeats calls by itself, with a bound that redis-py's own retries would exceed.
                retry=Retry(NoBackoff(), 0),
                # A blocking read has to wait for longer than other calls; each call has a timeout of ours.
                socket_timeout=None,
                socket_connect_timeout=self._timeout,
                max_connections=None,
            )
        except ValueError:
            # Neither the URL nor what redis-py says of it: both may hold a password.
            scheme, separator, _ = self._client.partition("://")
            begins = f"; the one given begins with {scheme!r}" if separator and scheme.isalpha() else ""
            raise ValueError(
                "store must be a URL like redis://localhost:6379/0 (or rediss://, or unix://), with options that"
                f" redis-py takes{begins}."
            ) from None

    def _open_backend(self) -> SharedBackend:
        return RedisBackend(
            self._connect(),
            self._keys,
            self._limits,
            lease=self._lease,
            timeout=self._timeout,
            degrade=self._degrade,
            owns=isinstance(self._client, str),
        )


def _check(client: object) -> None:
    if not isinstance(client, Redis | RedisCluster):
        raise ValueError(  # noqa: TRY004  # as for every other wrong setting
            "store must be a URL like redis://localhost:6379/0, or a client from redis.asyncio,"
            f" not a {type(client).__name__}."
        )
    pool = client if isinstance(client, RedisCluster) else client.connection_pool
    if pool.connection_kwargs.get("decode_responses"):
        raise ValueError("The Redis client decodes responses, but streams are bytes: leave decode_responses out.")
    if isinstance(client, Redis) and (client.single_connection_client or client.connection_pool.max_connections == 1):
        raise ValueError(
            "The Redis client has one connection, which the store's blocking read takes: leave out"
            " single_connection_client and max_connections=1."
        )
