"""The machine of states: what may follow what, held against a naive account of each epoch's life."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fastapi_resumable._core import lifecycle
from fastapi_resumable._core.lifecycle import Current, Outcome, Queued, Slot, Verdict
from fastapi_resumable.models import ResumableStatus

QUEUED, LIVE = ResumableStatus.QUEUED, ResumableStatus.IN_PROGRESS
CANCELLED, FAILED = ResumableStatus.CANCELLED, ResumableStatus.FAILED
COMPLETED, INTERRUPTED = ResumableStatus.COMPLETED, ResumableStatus.INTERRUPTED
RETENTION = 10.0

EPOCHS = st.sampled_from([f"e{number}" for number in range(8)])
WORKERS = st.sampled_from(["a", "b"])
KEYS = st.sampled_from([None, "k1", "k2"])
RULES = st.sampled_from(["replace", "attach", "reject"])


class Life(RuleBasedStateMachine):
    """Any order of transitions on one key. The account: each epoch's latest status, and what every change said."""

    def __init__(self) -> None:
        super().__init__()
        self.slot = Slot()
        self.now = 0.0
        self.told: dict[str, ResumableStatus] = {}
        self.used: set[str] = set()

    def take(self, transition: Any, *given: Any) -> Outcome:
        """Apply a transition, check what holds for each, and keep the new slot."""
        self.slot = lifecycle.expire(self.slot, self.now)
        outcome: Outcome = transition(self.slot, *given)
        for stream, status, code in outcome.changes:
            before = self.told.get(stream.epoch)
            if before not in (None, QUEUED, LIVE):
                assert status is before, "an end is final"
            if before is LIVE:
                assert status is not QUEUED
            if code:
                assert status in (CANCELLED, INTERRUPTED)
                assert before in (QUEUED, LIVE), "only what was there can be ended"
            self.told[stream.epoch] = status
        again: Outcome = transition(outcome.slot, *given)
        assert again.slot == outcome.slot, "applied again, it changes nothing"
        assert again.changes == (), "and tells nothing"
        self.slot = outcome.slot
        return outcome

    @rule(epoch=EPOCHS, worker=WORKERS, key=KEYS, on_conflict=RULES)
    def reserve(self, epoch: str, worker: str, key: str | None, on_conflict: Any) -> None:
        if epoch in self.used:
            return
        live = self.slot.current is not None and self.slot.current.is_live
        queued = self.slot.queued
        outcome = self.take(lifecycle.reserve, Queued(epoch, worker, key, self.now), on_conflict)
        if outcome.verdict is Verdict.QUEUED:
            self.used.add(epoch)
            assert on_conflict == "replace" or not (live or queued)
            assert self.slot.queued[-1].epoch == epoch
            assert outcome.replaces is (live and not queued)
        else:
            assert outcome.slot.queued == queued
            assert outcome.verdict is not Verdict.EXISTS or on_conflict == "reject"
            here = {request.epoch for request in queued}
            if outcome.verdict is Verdict.WAIT:
                assert outcome.rival in here
            elif outcome.verdict is Verdict.FOLLOW:
                assert self.slot.current is not None
                assert outcome.rival == self.slot.current.epoch

    @rule(epoch=EPOCHS)
    def begin(self, epoch: str) -> None:
        before = self.told.get(epoch)
        was_queued = epoch in [request.epoch for request in self.slot.queued]
        outcome = self.take(lifecycle.begin, epoch, self.now)
        if was_queued:
            assert outcome.verdict is Verdict.BEGUN
            assert self.slot.current is not None
            assert (self.slot.current.epoch, self.slot.current.is_live) == (epoch, True)
            assert outcome.changes[-1].status is LIVE
        elif outcome.verdict is Verdict.STOPPED:
            assert outcome.code == {"c": "cancelled", "r": "replaced"}[outcome.code[0]]
        elif outcome.verdict is Verdict.BEGUN:
            assert before is not QUEUED

    @rule(epoch=EPOCHS)
    def release(self, epoch: str) -> None:
        current = self.slot.current
        outcome = self.take(lifecycle.release, epoch)
        assert outcome.slot.current is None or outcome.slot.current == current, "what has begun stays"
        assert epoch not in [request.epoch for request in outcome.slot.queued]

    @rule(epoch=EPOCHS, ahead=st.integers(0, 2), size=st.integers(1, 9))
    def append(self, epoch: str, ahead: int, size: int) -> None:
        current = lifecycle.expire(self.slot, self.now).current
        first = (current.tail if current else 0) + ahead
        outcome = self.take(lifecycle.append, epoch, first, first + size)
        if outcome.verdict is Verdict.OK:
            assert current is not None
            assert (current.epoch, current.is_live, current.tail) == (epoch, True, first)
            assert self.slot.current == current._replace(tail=first + size)
        elif current is not None and current.epoch == epoch and current.is_live:
            assert outcome.verdict is Verdict.GAP
        else:
            assert outcome.verdict in (Verdict.ENDED, Verdict.MISSING)

    @rule(epoch=EPOCHS, status=st.sampled_from([COMPLETED, FAILED, INTERRUPTED]))
    def end(self, epoch: str, status: ResumableStatus) -> None:
        current = lifecycle.expire(self.slot, self.now).current
        was_live = current is not None and current.epoch == epoch and current.is_live
        outcome = self.take(lifecycle.end, epoch, status, "", self.now, RETENTION)
        assert bool(outcome.changes) is was_live
        if was_live:
            assert self.slot.current is not None
            assert (self.slot.current.status, self.slot.current.completed_at) == (status, self.now)

    @rule(epoch=st.one_of(st.none(), EPOCHS))
    def stop(self, epoch: str | None) -> None:
        before = self.slot
        outcome = self.take(lifecycle.stop, epoch, self.now)
        if epoch is None:
            assert outcome.slot.shown is None
        elif before.shown is not None:
            assert {e for e in epochs(before) if e != epoch} >= set(epochs(outcome.slot))

    @rule(worker=WORKERS)
    def lose(self, worker: str) -> None:
        self.take(lifecycle.lose, worker, self.now, RETENTION)
        assert all(request.worker != worker for request in self.slot.queued)
        current = self.slot.current
        assert current is None or current.worker != worker or not current.is_live

    @rule(epoch=EPOCHS)
    def abandon(self, epoch: str) -> None:
        self.take(lifecycle.ensure_ended, epoch, self.now, RETENTION)
        assert epoch not in [request.epoch for request in self.slot.queued]
        current = self.slot.current
        assert current is None or current.epoch != epoch or not current.is_live

    @rule(seconds=st.floats(0.1, 30))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def each_epoch_is_in_one_place(self) -> None:
        places = [*epochs(self.slot), *(gone.epoch for gone in self.slot.gone)]
        assert len(places) == len(set(places))

    @invariant()
    def what_was_told_last_is_what_there_is(self) -> None:
        """An epoch that is queued or live was not told to be over; one that is neither was not told to be either."""
        here = {request.epoch: QUEUED for request in self.slot.queued}
        if self.slot.current is not None:
            here[self.slot.current.epoch] = self.slot.current.status
        for epoch, status in self.told.items():
            if epoch in here:
                assert status is here[epoch]
            else:
                assert status not in (QUEUED, LIVE)

    @invariant()
    def a_live_one_does_not_expire(self) -> None:
        current = self.slot.current
        if current is not None and current.is_live:
            assert lifecycle.expire(self.slot, self.now + 1e9).current == current
        elif current is not None:
            assert lifecycle.expire(self.slot, current.expires_at).current is None


def epochs(slot: Slot) -> list[str]:
    """All epochs that are queued or current."""
    return [*([slot.current.epoch] if slot.current else []), *(request.epoch for request in slot.queued)]


Life.TestCase.settings = settings(stateful_step_count=30)
TestLife = Life.TestCase


def live(epoch: str = "a", *, tail: int = 0, worker: str = "w") -> Slot:
    return Slot(Current(epoch, worker, tail=tail))


def test_the_last_change_after_a_release_is_what_a_lookup_shows():
    slot = Slot(None, (Queued("a"), Queued("b"), Queued("c")))

    outcome = lifecycle.release(slot, "c")

    assert [(change.stream.epoch, change.status) for change in outcome.changes] == [("c", FAILED), ("b", QUEUED)]


def test_a_new_epoch_replaces_older_requests_then_the_live_stream_and_leaves_younger_requests_alone():
    slot = live()._replace(queued=(Queued("b"), Queued("c"), Queued("d")))

    outcome = lifecycle.begin(slot, "c", 5.0)

    told = [(change.stream.epoch, change.status, change.code) for change in outcome.changes]
    assert told == [("b", CANCELLED, "replaced"), ("a", CANCELLED, "replaced"), ("c", LIVE, "")]
    assert [request.epoch for request in outcome.slot.queued] == ["d"]
    assert lifecycle.begin(outcome.slot, "b", 6.0).code == "replaced"


def test_a_dead_worker_loses_its_requests_and_its_stream_and_others_keep_theirs():
    slot = live("a", worker="dead")._replace(queued=(Queued("b", "dead"), Queued("c", "well")))

    outcome = lifecycle.lose(slot, "dead", 5.0, RETENTION)

    told = [(change.stream.epoch, change.status, change.code) for change in outcome.changes]
    assert told == [("b", FAILED, ""), ("a", INTERRUPTED, "producer_lost")]
    assert lifecycle.lose(outcome.slot, "well", 6.0, RETENTION).slot.queued == ()


def test_a_lost_epoch_is_put_back_unless_it_was_stopped_or_another_has_begun():
    lost = Current("a", "w", tail=7)

    assert lifecycle.restore(Slot(), lost).slot.current == lost
    assert lifecycle.restore(live("a"), lost).slot.current == lost
    assert lifecycle.restore(live("b"), lost).verdict is Verdict.ENDED
    assert lifecycle.restore(lifecycle.stop(live("a"), "a", 1.0).slot, lost).verdict is Verdict.ENDED


def test_an_epoch_that_is_known_no_more_is_missing_and_one_that_was_stopped_has_ended():
    stopped = lifecycle.stop(live("a"), None, 0.0).slot

    assert lifecycle.append(stopped, "a", 0, 1).verdict is Verdict.ENDED
    assert lifecycle.append(lifecycle.expire(stopped, 61.0), "a", 0, 1).verdict is Verdict.MISSING
    assert lifecycle.end(Slot(), "a", COMPLETED, "", 0.0, RETENTION).verdict is Verdict.MISSING


def test_a_request_with_the_key_of_the_current_epoch_follows_it_whatever_the_rule():
    slot = Slot(Current("a", idempotency_key="k", status=COMPLETED, expires_at=9.0), (Queued("b", "", "q"),))

    assert lifecycle.reserve(slot, Queued("c", "", "k"), "reject")[1:4] == (Verdict.FOLLOW, (), "a")
    assert lifecycle.reserve(slot, Queued("c", "", "q"), "replace")[1:4] == (Verdict.WAIT, (), "b")
