"""What streams cost in Redis, measured on real workers.

    python -m tests.benchmarks.redis_sizing

Memory per event, commands per event as the server counts them, its processor time, and connections. The tables of
docs/how-to/redis-sizing.md are from here.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from tests.support.apps.player import numbered, send, unique, wait
from tests.support.redis_server import RedisServer
from tests.support.site import Site, environment, site_of

SIZES = [20, 60, 200, 1000]
SCRIPTED = {"hmget", "xadd", "hset", "hvals", "hget", "hgetall", "hdel", "hincrby", "time", "pexpire", "pttl"}
"""Commands that scripts run inside the server; a client sends none of these but `hdel` and `pexpire`, rarely."""


class Count:
    """What the server does while a block runs."""

    def __init__(self, redis: RedisServer) -> None:
        self.sent: Counter[str] = Counter()
        self.scripted: Counter[str] = Counter()
        self.microseconds = 0.0
        self.seconds = 0.0
        self._redis = redis

    def _now(self) -> tuple[Counter[str], float]:
        stats = self._redis.commandstats()
        calls = Counter({name.removeprefix("cmdstat_"): int(stat["calls"]) for name, stat in stats.items()})
        cpu = self._redis.control.info("cpu")
        return calls, float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])

    async def __aenter__(self) -> Self:
        self._calls, self._cpu = self._now()
        self._begun = time.monotonic()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._begun
        calls, cpu = self._now()
        self.microseconds = (cpu - self._cpu) * 1e6
        for name, number in (calls - self._calls).items():
            if name not in ("info", "client|list"):
                (self.scripted if name in SCRIPTED else self.sent)[name] += number

    def per(self, events: int) -> str:
        """A line of the table."""
        sent = ", ".join(f"{name} {number / events:.2f}" for name, number in self.sent.most_common(3))
        return (
            f"{sum(self.sent.values()) / events:6.2f} {sum(self.scripted.values()) / events:7.2f} "
            f"{self.microseconds / events:7.1f} us   {sent}"
        )


@asynccontextmanager
async def following(site: Site, name: str, readers: int) -> AsyncIterator[None]:
    """Readers of a stream on the second worker, who read to its end."""
    bodies = [await site.player(1).follow(name) for _ in range(readers)]
    reading = [asyncio.create_task(body.read_all()) for body in bodies]
    yield
    await asyncio.gather(*reading)


async def memory(site: Site, redis: RedisServer) -> None:
    """Bytes of one event, and of a stream besides its events."""
    print("\nMemory: 1,000 events, each written by itself; and in one burst\n")
    print(" event  on the wire   in Redis   besides   in a burst")
    for size in SIZES:
        took, wire = {}, 0
        for kind, steps in {"paced": ["paced", 1000, size, 0.005], "burst": numbered(1000, size)}.items():
            name = unique("memory")
            wire = len((await site.player(0).record(name, steps)).body)
            [log] = [key for key in redis.list_keys(f"*{name}*") if redis.control.type(key) == "stream"]
            took[kind] = redis.control.memory_usage(log, samples=0) / 1000
            if kind == "paced":
                assert redis.control.xlen(log) > 900
        print(f"{size:6} {wire / 1000:12.1f} {took['paced']:10.1f} {took['paced'] - wire / 1000:9.1f}", end="")
        print(f" {took['burst']:12.1f}")
    name = unique("11111111-2222-3333-4444-555555555555")
    await site.player(0).record(name, send(b"data: 1\n\n"))
    keys = redis.list_keys(f"*{name}*")
    each = {redis.control.type(key): redis.control.memory_usage(key, samples=0) for key in keys}
    print(f"\na stream with one event: {sum(each.values())} bytes in {len(keys)} keys ({each})")


async def commands(site: Site, redis: RedisServer) -> None:
    """Commands of one event."""
    async with Count(redis) as idle:
        await asyncio.sleep(5)
    rate = sum(idle.sent.values()) / idle.seconds / len(site.servers)
    print(f"\nCommands: an idle worker sends {rate:.2f} a second")
    async with Count(redis) as lives:
        for _ in range(100):
            await site.player(0).record(unique("life"), send(b"data: 1\n\n"))
    print("\nper event                      sent  within  server time   most")
    print(f"{'a stream of one event':<27}{lives.per(100)}")
    for readers in (0, 1, 100):
        name, gate = unique("commands"), unique("gate")
        live = await site.player(0).post(name, send(b"data: 1\n\n"), wait(gate), ["paced", 500, 60, 0.01])
        async with following(site, name, readers), Count(redis) as count:
            await site.player(0).open(gate)
            await live.read_all()
        print(f"{f'1 stream, {readers} readers':<27}{count.per(500)}")
    many = (200, 0, 50, 0.1), (200, 200, 50, 0.1), (64, 0, 1500, 0.0), (64, 64, 1500, 0.0)
    for streams, followed, number, pause in many:
        names, gate = [unique("many") for _ in range(streams)], unique("gate")
        script = send(b"data: 1\n\n"), wait(gate), ["paced", number, 60, pause]
        live = [await site.player(0).post(name, *script) for name in names]
        bodies = [await site.player(1).follow(name) for name in names[:followed]]
        reading = [asyncio.create_task(body.read_all()) for body in [*live, *bodies]]
        async with Count(redis) as count:
            await site.player(0).open(gate)
            await asyncio.gather(*reading)
        label = f"{streams}{'' if pause else ' fast'} streams, {followed} followed"
        print(f"{label:<27}{count.per(number * streams)}")
    print(f"\n{redis.connections()} connections of {len(site.servers)} workers, after a burst of 200 requests")


def wide_reads(redis: RedisServer) -> None:
    """Server time of one read over many logs."""
    print("\nOne read over this many logs, with news in one of them\n")
    for logs in (1, 100, 1000, 10_000):
        keys = [f"wide:{{/11111111-2222-3333-4444-{number:012}}}:gq4tcmrtgu3dooby" for number in range(logs)]
        with redis.control.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.delete(key)
                pipeline.xadd(key, {"d": b"data"}, id="1-0")
            pipeline.execute()
        places = {**dict.fromkeys(keys, "1-0"), keys[0]: "0-0"}
        redis.control.config_resetstat()
        for _ in range(50):
            redis.control.xread(places, 64, 2000)
        print(f"{logs:6} logs: {redis.commandstats()['cmdstat_xread']['usec_per_call']:8.0f} us")


async def main() -> None:
    """Print the tables."""
    with TemporaryDirectory() as folder, RedisServer(Path(folder)) as redis:
        async with site_of([environment(redis.url, Path(folder) / "notes")] * 2) as site:
            print(f"Redis {redis.control.info('server')['redis_version']}")
            await memory(site, redis)
            await commands(site, redis)
        wide_reads(redis)


if __name__ == "__main__":
    asyncio.run(main())
