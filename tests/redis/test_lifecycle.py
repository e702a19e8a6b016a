"""The scripts, held against the machine of states: command by command, each sent twice, as if its reply was lost."""

from typing import Any
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis import Redis

from fastapi_resumable._core import lifecycle
from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._core.lifecycle import Current, Outcome, Queued, Slot, Verdict
from fastapi_resumable.models import ResumableStatus
from fastapi_resumable.stores.redis.calls import Script, read_state
from fastapi_resumable.stores.redis.keys import Keys, log_key
from fastapi_resumable.stores.shared.writes import KeyState
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.redis

COMPLETED, FAILED = ResumableStatus.COMPLETED, ResumableStatus.FAILED
INTERRUPTED = ResumableStatus.INTERRUPTED
RETENTION, TTL = 300.0, 3_600_000
MILLISECONDS = int(RETENTION * 1000)
KEY = StreamKey("ann", "chat")
HEAD = '[200,[["content-type","text/event-stream"]]]'
EVENT = b"event: error\n\n"

EPOCHS = st.sampled_from([f"e{number}" for number in range(8)])
WORKERS = st.sampled_from(["a", "b"])
KEYS = st.sampled_from([None, "k1", "k2"])
RULES = st.sampled_from(["replace", "attach", "reject"])


class Scripts(RuleBasedStateMachine):
    """Any order of commands on one key of a Redis, and on a slot of the machine."""

    def __init__(self, client: Any) -> None:
        super().__init__()
        self.client = client
        self.name = Keys(f"lifecycle-{uuid4().hex}").stream(KEY)
        self.slot = Slot()
        self.now = 1000.0
        self.added = 0
        self.used: set[str] = set()

    def teardown(self) -> None:
        assert all(self.client.pttl(key) > 0 for key in self.keys())
        self.lose_all()

    def keys(self) -> list[bytes]:
        """What Redis holds of the stream."""
        found: list[bytes] = self.client.keys(self.name.replace("{", "[{]").replace("@", "[@]") + "*")
        return found

    def lose_all(self) -> None:
        """What a loss of the server's data does."""
        if keys := self.keys():
            self.client.delete(*keys)

    def forget_ends(self, *epochs: str) -> None:
        """What an hour does, to what their workers have yet to hear."""
        if epochs:
            self.client.delete(*(f"{log_key(self.name, epoch)}:ended" for epoch in epochs))

    def run(self, script: Script, *words: Any, log: str = "") -> Any:
        """Run a script twice; with the terminal event, where it asks for that. The reply is the same both times."""
        keys = [self.name, log_key(self.name, log)] if log else [self.name]
        self.added = 0
        reply = self.client.eval(script.text, len(keys), *keys, *words)
        if isinstance(reply, list) and reply[:1] == [b"event"]:
            _, epoch, tail, mid = reply
            assert (int(mid), int(tail)) == (0, self.state().current.tail)
            assert self.client.eval(script.text, len(keys), *keys, *words, epoch, int(tail) + 1, EVENT) == reply
            self.appends_nothing(epoch, int(tail))
            words = (*words, epoch, tail, EVENT)
            self.added = len(EVENT)
            reply = self.client.eval(script.text, len(keys), *keys, *words)
        before = self.state()
        again = self.client.eval(script.text, len(keys), *keys, *words)
        assert self.state() == before, "sent again, it changes nothing"
        assert again == reply or script in (Script.REAP, Script.RELEASE), "and replies the same"
        return reply

    def appends_nothing(self, epoch: bytes, tail: int) -> None:
        """While the terminal event is made, its place is kept."""
        words = [epoch, tail, tail + 1, b"x", 0, 0, TTL, 0, 0, "", MILLISECONDS, 64]
        assert self.client.eval(Script.APPEND.text, 1, self.name, *words) == [[b"gap", b"%d" % tail]]

    def state(self) -> KeyState:
        """What Redis says."""
        return read_state(KEY, self.client.eval(Script.PEEK.text, 1, self.name))

    def take(self, transition: Any, *given: Any) -> Outcome:
        """Apply a transition to the slot."""
        outcome: Outcome = transition(self.slot, *given)
        self.slot = outcome.slot
        if self.added and self.slot.current is not None and any(change.code for change in outcome.changes):
            ended = {change.stream.epoch for change in outcome.changes}
            if self.slot.current.epoch in ended and not self.slot.current.is_live:
                self.slot = self.slot._replace(current=self.grown(self.slot.current, self.added))
        self.added = 0
        return outcome

    @staticmethod
    def grown(current: Current, size: int) -> Current:
        return current._replace(tail=current.tail + size)

    @rule(epoch=EPOCHS, worker=WORKERS, key=KEYS, on_conflict=RULES)
    def reserve(self, epoch: str, worker: str, key: str | None, on_conflict: Any) -> None:
        if epoch in self.used:
            return
        word, *about = self.run(Script.RESERVE, epoch, worker, key or "", on_conflict, self.now, TTL)
        outcome = self.take(lifecycle.reserve, Queued(epoch, worker, key, self.now), on_conflict)
        assert word.decode() == outcome.verdict
        if outcome.verdict is Verdict.QUEUED:
            self.used.add(epoch)
            assert bool(about[0]) is outcome.replaces
        else:
            assert about[0].decode() == outcome.rival

    @rule(epoch=EPOCHS, worker=WORKERS, sse=st.booleans())
    def begin(self, epoch: str, worker: str, sse: bool) -> None:
        mine = next((each for each in self.slot.queued if each.epoch == epoch), None)
        begun = mine or Queued(epoch, worker)
        about = [begun.worker, HEAD, int(sse), self.now, begun.idempotency_key or ""]
        word, *told = self.run(Script.BEGIN, epoch, *about, TTL, MILLISECONDS, self.now)
        outcome = self.take(lifecycle.begin, epoch, self.now)
        assert word.decode() == outcome.verdict
        if outcome.verdict is Verdict.STOPPED:
            assert told == [outcome.code.encode()]
        elif mine is not None:
            assert told == told_of(outcome)

    @rule(epoch=EPOCHS)
    def release(self, epoch: str) -> None:
        self.run(Script.RELEASE, epoch, TTL, self.now, MILLISECONDS)
        self.take(lifecycle.ensure_ended, epoch, self.now, RETENTION)

    @rule(epoch=EPOCHS, ahead=st.integers(0, 2), size=st.integers(1, 9))
    def append(self, epoch: str, ahead: int, size: int) -> None:
        first = (self.slot.current.tail if self.slot.current else 0) + ahead
        words = [first, first + size, b"x" * size, 0, 0, TTL, int(not first), 0, "", MILLISECONDS, 64]
        # A log that has no bytes yet, as after a loss, is begun by the first.
        words[6] = int(not self.client.exists(log_key(self.name, epoch)))
        [[word, *_]] = self.run(Script.APPEND, epoch, *words)
        assert word.decode() == self.take(lifecycle.append, epoch, first, first + size).verdict

    @rule(epoch=EPOCHS, status=st.sampled_from([COMPLETED, FAILED, INTERRUPTED]))
    def end(self, epoch: str, status: ResumableStatus) -> None:
        tail = self.slot.current.tail if self.slot.current else 0
        words = [tail, tail, b"", 0, 0, TTL, 0, 0, f"{status}  {self.now}", MILLISECONDS, 64]
        [[word, *_]] = self.run(Script.APPEND, epoch, *words)
        assert word.decode() == self.take(lifecycle.end, epoch, status, "", self.now, RETENTION).verdict

    @rule(epoch=st.one_of(st.none(), EPOCHS))
    def stop(self, epoch: str | None) -> None:
        told = self.run(Script.STOP, epoch or "", TTL, self.now, MILLISECONDS)
        outcome = self.take(lifecycle.stop, epoch, self.now)
        assert told == told_of(outcome) or not outcome.changes, "what a stop found that was repeated"

    @rule(worker=WORKERS)
    def lose(self, worker: str) -> None:
        ended = self.run(Script.REAP, worker, TTL, self.now, MILLISECONDS)
        outcome = self.take(lifecycle.lose, worker, self.now, RETENTION)
        lost = [change.stream.epoch for change in outcome.changes if change.stream.worker == worker]
        over = [epoch for epoch in lost if epoch not in {request.epoch for request in self.slot.queued}]
        assert [epoch.decode() for epoch in ended] == over
        # The machine remembers nothing of a request that has left the queue so.
        current = self.slot.current
        self.forget_ends(*(epoch for epoch in over if current is None or epoch != current.epoch))

    @rule(epoch=EPOCHS, worker=WORKERS, tail=st.integers(0, 9), sse=st.booleans())
    def restore(self, epoch: str, worker: str, tail: int, sse: bool) -> None:
        self.used.add(epoch)
        about = [worker, HEAD, int(sse), self.now, ""]
        word, *_ = self.run(Script.RESTORE, epoch, *about, TTL, tail, log=epoch)
        outcome = self.take(lifecycle.restore, Current(epoch, worker, None, self.now, tail=tail))
        assert word == (b"gap" if outcome.verdict is Verdict.OK else b"ended")

    @rule()
    def forget_everything(self) -> None:
        self.lose_all()
        self.slot = Slot()

    @rule()
    def pass_retention(self) -> None:
        current = self.slot.current
        if current is not None and not current.is_live:
            self.client.hset(self.name, "expires", 1)
            self.client.delete(log_key(self.name, current.epoch))
            self.forget_ends(*self.used)
            self.slot = lifecycle.expire(self.slot._replace(gone=()), current.expires_at)
            marks = [name for name in self.client.hkeys(self.name) if name.startswith(b"x:")]
            if marks:
                self.client.hdel(self.name, *marks)

    @invariant()
    def redis_says_what_the_machine_says(self) -> None:
        state, slot = self.state(), self.slot
        assert [(each.epoch, each.worker, each.idempotency_key) for each in state.queued] == [
            (each.epoch, each.worker, each.idempotency_key) for each in slot.queued
        ]
        assert dict(state.gone) == {gone.epoch: gone.code for gone in slot.gone}
        assert (state.current is None) is (slot.current is None)
        if state.current is not None and slot.current is not None:
            for name in ("epoch", "worker", "idempotency_key", "status", "tail", "started_at"):
                assert getattr(state.current, name) == getattr(slot.current, name), name


def told_of(outcome: Outcome) -> list[bytes]:
    """Whom a script names: the workers, each with an epoch that was ended and that it has to stop."""
    ended = [change.stream for change in outcome.changes if change.code]
    return [word.encode() for stream in ended for word in (stream.worker, stream.epoch)]


def test_the_scripts_do_what_the_machine_does(redis_server: RedisServer) -> None:
    """Queue, begin, append, end, stop, release, lose, restore: in any order."""
    with Redis.from_url(redis_server.url) as client:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            lambda: Scripts(client), settings=settings(max_examples=25, stateful_step_count=25, deadline=None)
        )
