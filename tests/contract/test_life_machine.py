"""A state machine: any order of starts, reads, stops, ends, expiries and shutdowns, against a naive model."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.support import asgi
from tests.support.asgi import Client, Exchange, Lifespan, bounded, parse_events, settle
from tests.support.life_apps import Clock, Run, Stage, memory_store, stage

IDS = ("a", "a::b", "c")
KEYS = (None, "k-1", "k-2")
RETENTION = 60.0


@dataclass
class Epoch:
    """What the model knows of one stream."""

    run: Run
    key: str | None
    values: list[str] = field(default_factory=list)
    status: str = "in_progress"
    terminal: tuple[str, str] | None = None
    ended_at: float = 0.0
    readers: list[tuple[Exchange, int]] = field(default_factory=list)
    """Each with the number of events that had passed at the place where it began."""

    @property
    def live(self) -> bool:
        """Whether it still runs."""
        return self.status == "in_progress"

    def end(self, status: str, terminal: tuple[str, str] | None, now: float) -> None:
        """Enter a final state."""
        self.status, self.terminal, self.ended_at = status, terminal, now

    def expected(self) -> list[tuple[str, str]]:
        """The events that the log holds: name and data (of the terminal event, its code)."""
        events = [("message", value) for value in self.values]
        return events + ([self.terminal] if self.terminal else [])


def told(body: bytes) -> list[tuple[str, str]]:
    """The events of a body, comparable with the model's."""
    return [
        (event.event, event.data if event.event == "message" else event.json()["code"]) for event in parse_events(body)
    ]


class Life(RuleBasedStateMachine):
    """The driver: one app, one loop, one clock."""

    on_conflict = "replace"

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.model: dict[str, Epoch] = {}
        self.past: list[Epoch] = []
        self.down = False
        self.counter = 0
        self.clock = Clock()
        self.run(self._open())

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Drive the loop."""
        return self.loop.run_until_complete(coroutine)

    async def _open(self) -> None:
        # A request that is cancelled has a grace, which counts real time: never to be over here.
        self.made: Stage = stage(
            "decorator",
            store=memory_store(self.clock),
            retention=RETENTION,
            on_conflict=self.on_conflict,
            stop_grace=60.0,
        )
        self.client = Client(self.made.app)
        self.life = Lifespan(self.made.app, {})
        await self.life.startup()

    def current(self, stream_id: str) -> Epoch | None:
        """The model's stream under an id, unless it has expired."""
        epoch = self.model.get(stream_id)
        if epoch is not None and not epoch.live and self.clock.now >= epoch.ended_at + RETENTION:
            del self.model[stream_id]
            return None
        return epoch

    # -- the rules ------------------------------------------------------------------------------------------------

    @rule(stream_id=st.sampled_from(IDS), key=st.sampled_from(KEYS))
    def start(self, stream_id: str, key: str | None) -> None:
        """POST: by key, by rule of conflict, or as a new epoch."""
        self.run(self._start(stream_id, key))

    async def _start(self, stream_id: str, key: str | None) -> None:
        old = self.current(stream_id)
        headers = {} if key is None else {"Idempotency-Key": key}
        before = len(self.made.runs)
        exchange = self.made.post(self.client, stream_id, headers=headers)
        if (old is not None and key is not None and old.key == key) or (
            old is not None and old.live and self.on_conflict == "attach"
        ):
            await self._followed(exchange, old, before)
        elif old is not None and old.live and self.on_conflict == "reject":
            reply = await exchange.reply()
            assert (reply.status, reply.code) == (409, "stream_exists")
        elif self.down:
            reply = await exchange.reply()
            assert (reply.status, reply.code) == (503, "shutting_down")
        else:
            run = await self.made.run(before)
            self.counter += 1
            first = f"first-{self.counter}"
            run.put(first)
            head = await exchange.head()
            assert head.status == 200
            if old is not None and old.live:
                old.end("cancelled", ("cancelled", "replaced"), self.clock.now)
                await old.run.wait_closed()
            if old is not None:
                self.past.append(old)
            self.model[stream_id] = Epoch(run, key, [first], readers=[(exchange, 0)])
            return
        assert len(self.made.runs) == before

    async def _followed(self, exchange: Exchange, epoch: Epoch, runs: int) -> None:
        head = await exchange.head()
        assert head.status == 200
        assert len(self.made.runs) == runs
        epoch.readers.append((exchange, 0))

    @rule(stream_id=st.sampled_from(IDS), count=st.integers(1, 3))
    def produce(self, stream_id: str, count: int) -> None:
        """The generator yields."""
        epoch = self.current(stream_id)
        if epoch is not None and epoch.live:
            self.counter += 1
            values = [f"{self.counter}-{number}" for number in range(count)]
            epoch.run.put(*values)
            epoch.values.extend(values)
            self.run(settle())

    @rule(stream_id=st.sampled_from(IDS), fails=st.booleans())
    def end(self, stream_id: str, fails: bool) -> None:
        """The generator returns, or raises."""
        epoch = self.current(stream_id)
        if epoch is not None and epoch.live:
            if fails:
                epoch.run.fail(ValueError("no"))
                epoch.end("failed", ("error", "producer_failed"), self.clock.now)
            else:
                epoch.run.finish()
                epoch.end("completed", None, self.clock.now)
            self.run(epoch.run.wait_closed())
            self.run(settle())

    @rule(stream_id=st.sampled_from(IDS), skip=st.integers(0, 3), by_id=st.booleans())
    def read(self, stream_id: str, skip: int, by_id: bool) -> None:
        """GET, from the start or after some event, by offset or by event id."""
        self.run(self._read(stream_id, skip, by_id))

    async def _read(self, stream_id: str, skip: int, by_id: bool) -> None:
        epoch = self.current(stream_id)
        url = f"/v1/stream/{stream_id}"
        if epoch is None:
            reply = await self.client.get(url)
            assert (reply.status, reply.code) == (404, "stream_not_found")
            return
        skip = min(skip, len(epoch.values))
        headers: dict[str, str] = {}
        if skip:
            probe = self.client.start("GET", url)
            body = await probe.read_until(f"data: {epoch.values[skip - 1]}\n".encode())
            body += await probe.read_until(b"\n\n")
            probe.disconnect()
            event_id = parse_events(body)[-1].id
            offset = int(event_id.rpartition("-")[2])
            assert offset == len(body)
            headers, url = ({"Last-Event-ID": event_id}, url) if by_id else ({}, f"{url}?from={offset}")
        reader = self.client.start("GET", url, headers=headers)
        status = (await reader.head()).status
        if skip and by_id and not epoch.live and not epoch.expected()[skip:]:
            assert status == 204
        else:
            assert status == 200
            epoch.readers.append((reader, skip))

    @rule(stream_id=st.sampled_from(IDS), how=st.sampled_from(["disconnect", "cancel"]))
    def leave(self, stream_id: str, how: str) -> None:
        """A reader goes away, the first response's among them."""
        epoch = self.current(stream_id)
        if epoch is not None and epoch.readers:
            reader, _ = epoch.readers.pop(0)
            getattr(reader, how)()
            self.run(settle())

    @rule(stream_id=st.sampled_from(IDS), foreign_epoch=st.booleans())
    def stop(self, stream_id: str, foreign_epoch: bool) -> None:
        """DELETE."""
        epoch = self.current(stream_id)
        query = "?epoch=aaaaaaaaaaaaaaaa" if foreign_epoch else ""
        reply = self.run(self.client.delete(f"/v1/stream/{stream_id}{query}"))
        assert reply.status == 204
        if epoch is not None and not foreign_epoch:
            if epoch.live:
                epoch.end("cancelled", ("cancelled", "cancelled"), self.clock.now)
                self.run(epoch.run.wait_closed())
            self.past.append(self.model.pop(stream_id))

    @rule(seconds=st.sampled_from([1.0, 30.0, RETENTION]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.clock.advance(seconds)
        for stream_id in IDS:
            self.current(stream_id)

    @precondition(lambda self: not self.down and len(self.past) > 3)
    @rule()
    def shut_down(self) -> None:
        """The server is told to go."""
        self.down = True
        self.run(bounded(self._shut_down(), "the shutdown"))

    async def _shut_down(self) -> None:
        assert self.made.resumable is not None
        await self.made.resumable.shutdown()
        for epoch in self.model.values():
            if epoch.live:
                epoch.end("interrupted", ("error", "interrupted"), self.clock.now)
                await epoch.run.wait_closed()
        # The memory store goes with the process.
        self.past.extend(self.model.values())
        self.model.clear()

    # -- what must hold -------------------------------------------------------------------------------------------

    @invariant()
    def lookups_agree(self) -> None:
        """A lookup knows what the model knows, each stream once, variants included."""
        expected = {stream_id: epoch.status for stream_id in IDS if (epoch := self.current(stream_id)) is not None}
        reply = self.run(self.client.post("/v1/streams/lookup", json={"conversation_ids": ["a", "c"]}))
        found = [(item["conversation_id"], item["status"]) for item in reply.json()]
        assert len(found) == len(set(found))
        assert dict(found) == expected

    @invariant()
    def finished_streams_replay_whole(self) -> None:
        """What has ended and not expired is there, every byte of it, and ends cleanly."""
        for stream_id in IDS:
            epoch = self.current(stream_id)
            if epoch is not None and not epoch.live:
                reply = self.run(self.client.get(f"/v1/stream/{stream_id}"))
                assert reply.status == 200
                assert reply.clean
                assert told(reply.body) == epoch.expected()

    @invariant()
    def readers_of_what_has_ended_have_ended(self) -> None:
        """Each with the events from its place on, and the terminal one: no gap, no repetition, no hang."""
        for epoch in [*self.past, *self.model.values()]:
            if not epoch.live:
                for reader, skipped in epoch.readers:
                    body = self.run(reader.rest())
                    assert reader.clean
                    assert told(body) == epoch.expected()[skipped:]
                epoch.readers.clear()

    def teardown(self) -> None:
        """End everything; nothing may be left."""
        try:
            for exchange in self.client.exchanges:
                exchange.disconnect()
            self.run(self.life.shutdown())
            self.run(self.client.close())
            self.run(settle())
            assert not asyncio.all_tasks(self.loop)
        finally:
            self.run(self.loop.shutdown_asyncgens())
            self.run(self.loop.shutdown_default_executor())
            self.loop.close()


@pytest.mark.slow
@pytest.mark.parametrize("rule_of_conflict", ["replace", "attach", "reject"])
def test_any_order_of_events_agrees_with_the_model(rule_of_conflict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypothesis looks for an order that does not."""
    # Shrinking an order that hangs tries many that hang.
    monkeypatch.setattr(asgi, "LIMIT", 10.0)

    class UnderRule(Life):
        on_conflict = rule_of_conflict

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        UnderRule,
        settings=settings(
            max_examples=15,
            stateful_step_count=25,
            suppress_health_check=list(HealthCheck),
        ),
    )
