"""The load generator: a process of its own that takes jobs as lines of JSON, and answers each with one.

Raw sockets on uvloop, nothing parsed that need not be. It also looks at the server's CPU and memory, so that what it
reports is for just the time in which the load was on. Linux only, as /proc is.
"""

import asyncio
import json
import resource
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

HOST = "127.0.0.1"
END = b"0\r\n\r\n"
CONNECT_AT_ONCE = 100


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, in all its threads, user and kernel."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def resident_kib(pid: int, what: str = "VmRSS") -> int:
    """Memory of a process; `VmHWM`: the most that it ever had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1])


def percentile(values: list[float], share: float) -> float:
    """The value below which a share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


class Client(asyncio.Protocol):
    """One connection, one request at a time. It counts events and bytes; subclasses look closer."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.events = 0
        self.size = 0
        self.status = 0
        self.first_byte = 0.0
        self._done: asyncio.Future[None] | None = None
        self._head = b""
        self._in_head = True
        self._after_newline = False
        self._left = -1
        self._tail = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError("closed before the end"))

    def ask(self, method: str, path: str, *headers: str, body: bytes = b"") -> "asyncio.Future[None]":
        """Send a request; the future is done at the end of the response."""
        lines = [f"{method} {path} HTTP/1.1", f"host: {HOST}", *headers]
        if method == "POST":
            lines.append(f"content-length: {len(body)}")
        self._in_head, self._head = True, b""
        self._done = asyncio.get_running_loop().create_future()
        self._asked = time.monotonic()
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        return self._done

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head += data
            head, blank, data = self._head.partition(b"\r\n\r\n")
            if not blank:
                return
            self._in_head = False
            self.first_byte = time.monotonic() - self._asked
            self.status = int(head[9:12])
            if self.status != 200:
                self._finish(RuntimeError(f"{head + data!r}"))
                return
            self._left = -1
            if b"content-length:" in head:
                self._left = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        if self._left >= 0:
            self._left -= len(data)
            if self._left <= 0:
                self._finish(None)
            return
        self.size += len(data)
        if self._after_newline and data[:1] == b"\n":
            self.events += 1
        self.events += data.count(b"\n\n")
        self._after_newline = data[-1:] == b"\n" and data[-2:] != b"\n\n"
        if data:
            self.take(data)
        self._tail = data[-5:] if len(data) >= 5 else (self._tail + data)[-5:]
        if self._tail == END:
            self._tail = b""
            self._after_newline = False
            self._finish(None)

    def take(self, data: bytes) -> None:
        """Look at what has come."""

    def _finish(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error) if error else self._done.set_result(None)


class Timed(Client):
    """Notes how old each event is when it comes."""

    def __init__(self, ages: list[float]) -> None:
        super().__init__()
        self.ages = ages
        self._rest = b""

    def take(self, data: bytes) -> None:
        now = time.monotonic_ns()
        data = self._rest + data
        at = data.find(b'"t":')
        while at >= 0:
            comma = data.find(b",", at)
            if comma < 0:
                break
            self.ages.append((now - int(data[at + 4 : comma])) / 1e6)
            at = data.find(b'"t":', comma)
        self._rest = data[at:] if at >= 0 else data[-3:]


class Ordered(Client):
    """Takes the body apart, to know its offset, and checks that event follows event; may drop and resume."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = 0
        self.next = 0
        self.faults = 0
        self.caught_up: asyncio.Future[float] | None = None
        self.target = -1
        self._wire = b""
        self._body = b""

    def take(self, data: bytes) -> None:
        self._wire += data
        while (at := self._wire.find(b"\r\n")) > 0:
            size = int(self._wire[:at], 16)
            if not size or len(self._wire) < at + 4 + size:
                break
            self.offset += size
            self._body += self._wire[at + 2 : at + 2 + size]
            self._wire = self._wire[at + 4 + size :]
        *events, self._body = self._body.split(b"\n\n")
        for event in events:
            number = int(event[event.index(b'"i":') + 4 : event.index(b',"p"')]) if b'"i":' in event else None
            if number is not None:
                self.faults += number != self.next
                self.next = number + 1
        if self.caught_up is not None and not self.caught_up.done() and self.next > self.target:
            self.caught_up.set_result(time.monotonic())

    def forget_rest(self) -> None:
        """The connection has gone in the middle of a chunk: go on from the last whole one."""
        self._wire = b""


class Paced(Timed, Ordered):
    """Notes how old the events are, and takes the body apart."""

    def take(self, data: bytes) -> None:
        super().take(data)
        Ordered.take(self, data)


class Slow:
    """A client that takes a KiB a second, over a connection with as little room as one over the internet has."""

    def __init__(self, port: int) -> None:
        self.size = 0
        self._port = port
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)

    async def read(self, path: str, later: float) -> None:
        """Ask for a stream, and take of it until the end or until cancelled."""
        loop = asyncio.get_running_loop()
        with self._socket:
            await loop.sock_connect(self._socket, (HOST, self._port))
            await loop.sock_sendall(self._socket, f"GET {path} HTTP/1.1\r\nhost: {HOST}\r\n\r\n".encode())
            while data := await loop.sock_recv(self._socket, 1024):
                self.size += len(data)
                await asyncio.sleep(1 + later)
                later = 0


class Job:
    """A server under load."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid

    async def connect(self, count: int, make: Callable[[], Any] = Client) -> list[Any]:
        """Open so many connections, not all at once."""
        loop = asyncio.get_running_loop()
        clients: list[Any] = []
        while len(clients) < count:
            some = min(CONNECT_AT_ONCE, count - len(clients))
            opened = await asyncio.gather(*(loop.create_connection(make, HOST, self.port) for _ in range(some)))
            clients += [client for _, client in opened]
        return clients

    async def measure(self, work: Awaitable[Any]) -> dict[str, float]:
        """Wall and server CPU seconds of some work."""
        cpu, wall = cpu_seconds(self.pid), time.monotonic()
        await work
        return {"cpu": cpu_seconds(self.pid) - cpu, "wall": time.monotonic() - wall}

    async def streams(
        self, c: int, n: int, rounds: int = 1, awaits: bool = True, size: int = 128, probe: bool = False
    ) -> dict[str, float]:
        """W1: `c` connections, each with so many streams of `n` events one after the other, as fast as it goes."""
        clients = await self.connect(c)
        path = f"/generate?n={n}&awaits={awaits:d}" + (f"&size={size}" if size != 128 else "")
        ttfb: list[float] = []

        async def use(number: int, client: Client) -> None:
            for _ in range(rounds):
                await client.ask("POST", path, f"x-conversation-id: s{number}")
                ttfb.append(client.first_byte * 1e3)

        before = resident_kib(self.pid)
        async with self._probing(probe) as probes:
            spent = await self.measure(asyncio.gather(*(use(*pair) for pair in enumerate(clients))))
        events = sum(client.events for client in clients)
        _close(clients)
        assert events == c * n * rounds, (events, c * n * rounds)
        return spent | {
            "events": events,
            "us_per_event": spent["cpu"] / events * 1e6,
            "events_s": events / spent["wall"],
            "ttfb_p99_ms": percentile(ttfb, 0.99),
            "probe_p95_ms": percentile(probes, 0.95),
            "mb_per_cpu_s": sum(client.size for client in clients) / 1e6 / spent["cpu"],
            "peak_growth_kib": resident_kib(self.pid, "VmHWM") - before,
        }

    @asynccontextmanager
    async def _probing(self, wanted: bool) -> AsyncIterator[list[float]]:
        """Ask for something else meanwhile; how long that took is known afterwards."""
        waits: list[float] = []
        if not wanted:
            yield waits
            return
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.benchmarks.probe", str(self.port)),
            cwd=Path(__file__).parent.parent.parent,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            yield waits
        finally:
            printed, _ = await child.communicate(b"")
        waits += json.loads(printed)

    async def paced(self, c: int, rate: float, seconds: float, settle: float = 0.5) -> dict[str, float]:
        """W2: `c` streams of `rate` events a second."""
        ages: list[float] = []
        before = resident_kib(self.pid)
        clients = await self.connect(c, lambda: Timed(ages))
        path = f"/generate?n={int(rate * (seconds + settle + 100)) + 1}&rate={rate}"
        await self._begin(clients, path, "p")
        await asyncio.sleep(settle)
        ages.clear()
        spent = await self.measure(asyncio.sleep(seconds))
        events = len(ages)
        late = percentile(ages, 0.99)
        rss = resident_kib(self.pid)
        await self._stop_all(clients, [f"p{number}" for number in range(c)])
        return spent | {
            "events": events,
            "us_per_event": spent["cpu"] / max(events, 1) * 1e6,
            "cpu_pct": spent["cpu"] / spent["wall"] * 100,
            "events_s": events / spent["wall"],
            "lat_p99_ms": late,
            "rss_growth_kib": rss - before,
        }

    async def _begin(self, clients: list[Client], path: str, prefix: str) -> None:
        """Start a stream on each connection, as many at a time as have their first event before the next ones."""
        for start in range(0, len(clients), 50):
            some = clients[start : start + 50]
            for number, client in enumerate(some, start):
                client.ask("POST", path, f"x-conversation-id: {prefix}{number}").add_done_callback(_retrieve)
            await _until(lambda some=some: all(client.events for client in some))

    async def _stop_all(self, clients: list[Client], ids: list[str]) -> None:
        """Drop the connections, and stop the streams, where there are routes for that."""
        _close(clients)
        (client,) = await self.connect(1)
        for name in ids:
            try:
                await client.ask("DELETE", f"/v1/stream/{name}")
            except RuntimeError:
                if client.status in {404, 405}:
                    break
        _close([client])
        await asyncio.sleep(0.05)

    async def replays(self, c: int, rounds: int, path: str = "", n: int = 32_768) -> dict[str, float]:
        """W3: `c` connections that each read a finished stream, over and over."""
        if not path:
            path = "/v1/stream/replayed"
            (client,) = await self.connect(1)
            await client.ask("POST", f"/generate?n={n}&awaits=0", "x-conversation-id: replayed")
            _close([client])
        clients = await self.connect(c)
        ttfb: list[float] = []

        async def use(client: Client) -> None:
            for _ in range(rounds):
                await client.ask("GET", path)
                ttfb.append(client.first_byte * 1e3)

        spent = await self.measure(asyncio.gather(*map(use, clients)))
        size = sum(client.size for client in clients)
        assert sum(client.events for client in clients) == c * rounds * n
        _close(clients)
        return spent | {
            "mb_per_cpu_s": size / 1e6 / spent["cpu"],
            "mb_s": size / 1e6 / spent["wall"],
            "ttfb_p99_ms": percentile(ttfb, 0.99),
        }

    async def fan_out(
        self, c: int, rate: float, seconds: float, shared: bool = True, settle: float = 0.5, size: int = 128
    ) -> dict[str, float]:
        """W4: one stream to `c` readers; where none can be shared, each gets a stream of its own."""
        ages: list[float] = []
        # Long enough for everybody to join; it is stopped when all is measured.
        n = int(rate * (seconds + settle + 100))
        path = f"/generate?n={n}&rate={rate}" + (f"&size={size}" if size != 128 else "")
        before = resident_kib(self.pid)
        (first,) = await self.connect(1)
        if shared:
            first.ask("POST", path, "x-conversation-id: fan").add_done_callback(_retrieve)
            await _until(lambda: first.events > 0)
        clients = await self.connect(c, lambda: Timed(ages))
        for client in clients:
            client.ask("GET", "/v1/stream/fan" if shared else path).add_done_callback(_retrieve)
        await _until(lambda: all(client.events for client in clients))
        await asyncio.sleep(settle)
        ages.clear()
        spent = await self.measure(asyncio.sleep(seconds))
        events = len(ages)
        result = spent | {
            "events": events,
            "us_per_event": spent["cpu"] / max(events, 1) * 1e6,
            "cpu_pct": spent["cpu"] / spent["wall"] * 100,
            "delivered_pct": 100 * events / (rate * spent["wall"] * c),
            "lat_p50_ms": percentile(ages, 0.5),
            "lat_p99_ms": percentile(ages, 0.99),
            "rss_growth_kib": resident_kib(self.pid) - before,
        }
        await self._stop_all([first, *clients], ["fan"] if shared else [])
        return result

    async def sessions(self, count: int, n: int = 32, lookups: int = 100) -> dict[str, float]:
        """W5: so many finished streams of `n` events; what they take, and how fast 100 of them are looked up."""
        clients = await self.connect(8)

        async def create(client: Client, numbers: range) -> None:
            for number in numbers:
                await client.ask("POST", f"/generate?n={n}&awaits=0", f"x-conversation-id: s{number}")

        # What a first few cost is not theirs: code that is loaded, pools that grow.
        await asyncio.gather(*(create(client, range(-8 - k, -k)) for k, client in enumerate(clients, 1)))
        before = resident_kib(self.pid)
        spent = await self.measure(
            asyncio.gather(*(create(client, range(k, count, 8)) for k, client in enumerate(clients)))
        )
        await asyncio.sleep(0.1)
        after = resident_kib(self.pid)
        body = json.dumps(
            {"conversation_ids": [f"s{number}" for number in range(0, count, max(1, count // 100))][:100]}
        )
        waits: list[float] = []

        async def look() -> None:
            for _ in range(lookups):
                begun = time.monotonic()
                await clients[0].ask("POST", "/v1/streams/lookup", "content-type: application/json", body=body.encode())
                waits.append((time.monotonic() - begun) * 1e3)

        looked = await self.measure(look())
        _close(clients)
        return {
            "kib_per_session": (after - before) / count,
            "us_per_session": spent["cpu"] / count * 1e6,
            "lookup_ms": percentile(waits, 0.5),
            "lookup_cpu_ms": looked["cpu"] / lookups * 1e3,
        }

    async def storm(self, c: int, rate: float = 20) -> dict[str, float]:
        """W6: `c` readers of one stream drop at once and, a second later, all resume."""
        (first,) = await self.connect(1)
        first.ask("POST", f"/generate?n={int(rate * 60)}&rate={rate}", "x-conversation-id: storm").add_done_callback(
            _retrieve
        )
        await _until(lambda: first.events > 0)
        clients = await self.connect(c, Ordered)
        for client in clients:
            client.ask("GET", "/v1/stream/storm").add_done_callback(_retrieve)
        await _until(lambda: all(client.next for client in clients))
        await asyncio.sleep(0.5)
        _close(clients)
        await asyncio.sleep(1)
        target = first.events - 1
        loop = asyncio.get_running_loop()
        begun = time.monotonic()
        for client in clients:
            client.forget_rest()
            client.target, client.caught_up = target, loop.create_future()

        async def resume(client: Ordered) -> float:
            await loop.create_connection(lambda: client, HOST, self.port)
            client.ask("GET", f"/v1/stream/storm?from={client.offset}").add_done_callback(_retrieve)
            assert client.caught_up is not None
            return (await client.caught_up - begun) * 1e3

        waits: list[float] = []

        async def all_resume() -> None:
            waits.extend(await asyncio.gather(*map(resume, clients)))

        spent = await self.measure(all_resume())
        await asyncio.sleep(0.2)
        faults = sum(client.faults for client in clients)
        await self._stop_all([first, *clients], ["storm"])
        return spent | {
            "catchup_p50_ms": statistics.median(waits),
            "catchup_max_ms": max(waits),
            "cpu_us_per_reader": spent["cpu"] / c * 1e6,
            "faults": faults,
        }

    async def slow(
        self,
        bound: int,
        c: int = 64,
        slow: int = 64,
        streams: int = 4,
        rate: float = 100,
        size: int = 2048,
        seconds: float = 1.5,
        settle: float = 0.7,
        flood: int = 4096,
    ) -> dict[str, float]:
        """`c` fast readers of some live streams, alone and with slow ones beside them, in turn.

        And then, with all of them, streams of several times the log's bound, as fast as they come: they have to wait
        for the slow readers, until these go.
        """
        before = resident_kib(self.pid)
        ages: dict[bool, list[float]] = {False: [], True: []}
        lost, behind = 0, 0.0
        for number in range(4):
            slowed = number % 2 == 1
            others = [Slow(self.port) for _ in range(slow * slowed)]
            n = int(rate * (seconds + settle))
            path = f"/generate?n={n}&rate={rate}&size={size}"
            some, seen = await self._beside(f"r{number}", c, others, streams, path, settle)
            ages[slowed] += some
            lost += (c * n - seen) * size
            if slowed:
                behind = n * size - max(other.size for other in others)
        others = [Slow(self.port) for _ in range(slow)]
        path = f"/generate?n={flood}&size={size}&pause={settle}"
        _, seen = await self._beside("flood", c, others, streams, path, 2 * settle, flood=True)
        lost += (c * flood - seen) * size
        return {
            "alone_p50_ms": percentile(ages[False], 0.5),
            "alone_p99_ms": percentile(ages[False], 0.99),
            "beside_p50_ms": percentile(ages[True], 0.5),
            "beside_p99_ms": percentile(ages[True], 0.99),
            "events": len(ages[False]) + len(ages[True]),
            "behind_kib": behind / 1024,
            "lost": lost,
            "growth_mib": (resident_kib(self.pid, "VmHWM") - before) / 1024,
            # The logs, and the block that each of them fills; for each reader a block that is being sent, two that the
            # server has yet to send, and its request.
            "bound_mib": (streams * bound * 9 / 8 + (c + slow) * 256 * 1024) / 1024**2,
        }

    async def _beside(
        self, name: str, c: int, others: list[Slow], streams: int, path: str, settle: float, flood: bool = False
    ) -> tuple[list[float], int]:
        """Read some streams to their end: how old the events were, and how many came in order."""
        ages: list[float] = []
        clients = await self.connect(c, lambda: Paced(ages))
        ids = [f"{name}-{number}" for number in range(streams)]
        fast = [
            client.ask("POST", path, f"x-conversation-id: {key}") for client, key in zip(clients, ids, strict=False)
        ]
        await _until(lambda: all(client.events for client in clients[:streams]))
        for number, client in enumerate(clients[streams:]):
            fast.append(client.ask("GET", f"/v1/stream/{ids[number % streams]}"))
        slow = [
            asyncio.ensure_future(other.read(f"/v1/stream/{ids[number % streams]}", number / len(others)))
            for number, other in enumerate(others)
        ]
        await _until(lambda: all(other.size for other in others) and all(client.events for client in clients))
        await asyncio.sleep(settle)
        ages.clear()
        if not flood:
            await asyncio.gather(*fast)
        for reading in slow:
            reading.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        await asyncio.gather(*fast)
        await self._stop_all(clients, ids)
        return ages, sum(client.next - client.faults for client in clients)

    async def idle(self, c: int, seconds: float) -> dict[str, float]:
        """`c` live streams that say nothing after their first event, with one reader each."""
        before = resident_kib(self.pid)
        clients = await self.connect(c)
        begun = time.monotonic()
        await self._begin(clients, "/generate?n=1&hold=3600", "i")
        started = time.monotonic() - begun
        await asyncio.sleep(1)
        spent = await self.measure(asyncio.sleep(seconds))
        after = resident_kib(self.pid)
        _close(clients)
        return spent | {
            "cpu_pct": spent["cpu"] / spent["wall"] * 100,
            "kib_per_stream": (after - before) / c,
            "start_ms": started / c * 1e3,
        }


def _retrieve(future: "asyncio.Future[None]") -> None:
    """Connections are cut on purpose."""
    if not future.cancelled():
        future.exception()


def _close(clients: list[Any]) -> None:
    for client in clients:
        client.transport.abort()


async def _until(condition: Callable[[], bool], limit: float = 60) -> None:
    async with asyncio.timeout(limit):
        while not condition():  # noqa: ASYNC110  # what comes over many connections has no one event
            await asyncio.sleep(0.01)


def main() -> None:
    """Take jobs from stdin: `{"port": ..., "pid": ..., "do": "streams", ...}`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = uvloop.run(_run(**job))
        except Exception as error:
            answer = {"error": repr(error)[:500]}
        print(json.dumps(answer), flush=True)


async def _run(port: int, pid: int, do: str, **options: Any) -> Any:
    async with asyncio.timeout(110):
        return await getattr(Job(port, pid), do)(**options)


if __name__ == "__main__":
    main()
