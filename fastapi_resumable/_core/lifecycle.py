"""How the streams under one key may change: the current epoch, and the requests that wait to begin the next one.

A `Slot` is a value. Each function takes one, and returns an `Outcome`: the slot as it is afterwards, a verdict for the
caller, and the changes that follow, in the order in which watchers hear of them. There is no I/O, no waiting and no
clock here: the time comes in, as Unix seconds. A store calls `expire` before it decides anything.

Every function may be applied again, by a caller that never got the answer: the second time changes nothing more.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Literal, NamedTuple

from ..models import ResumableStatus

OnConflict = Literal["replace", "attach", "reject"]

REMEMBERED = 60.0
"""Seconds for which it is known of an epoch that was stopped or replaced, and why."""


class Queued(NamedTuple):
    """A request that waits for its endpoint to begin."""

    epoch: str
    worker: str = ""
    idempotency_key: str | None = None
    requested_at: float = 0.0


class Current(NamedTuple):
    """The epoch that an id stands for: the one that runs, or the last one that did."""

    epoch: str
    worker: str = ""
    idempotency_key: str | None = None
    started_at: float = 0.0
    status: ResumableStatus = ResumableStatus.IN_PROGRESS
    code: str = ""
    tail: int = 0
    completed_at: float = 0.0
    expires_at: float = 0.0

    @property
    def is_live(self) -> bool:
        """Whether it has not ended."""
        return self.status is ResumableStatus.IN_PROGRESS


class Gone(NamedTuple):
    """An epoch that was stopped or replaced a short while ago."""

    epoch: str
    code: str
    at: float


class Slot(NamedTuple):
    """Everything under one key; the requests that wait are in the order in which they came."""

    current: Current | None = None
    queued: tuple[Queued, ...] = ()
    gone: tuple[Gone, ...] = ()

    @property
    def shown(self) -> Queued | Current | None:
        """What a lookup shows."""
        return self.current or (self.queued[-1] if self.queued else None)


class Change(NamedTuple):
    """A stream in a new state. With a `code`, something other than its producer ended it, which has to stop."""

    stream: Queued | Current
    status: ResumableStatus
    code: str = ""


class Verdict(StrEnum):
    """What a transition came to."""

    OK = "ok"
    QUEUED = "queued"
    FOLLOW = "follow"
    """The request is not queued: it follows the current epoch, which is the rival."""
    WAIT = "wait"
    """The request is not queued: it waits until the rival, which is queued, has begun, and follows that."""
    EXISTS = "exists"
    BEGUN = "begun"
    STOPPED = "stopped"
    """The request was stopped or replaced before it began; the code says which."""
    UNKNOWN = "unknown"
    ENDED = "ended"
    """The epoch is over, or no longer the current one."""
    GAP = "gap"
    """The bytes do not continue where the log ends."""
    MISSING = "missing"
    """Nothing is known of the epoch, as after a loss of the store's data."""


class Outcome(NamedTuple):
    """What a transition returns."""

    slot: Slot
    verdict: Verdict = Verdict.OK
    changes: tuple[Change, ...] = ()
    rival: str = ""
    """The epoch to follow or to wait for."""
    code: str = ""
    replaces: bool = False
    """Whether the request takes the place of a stream that is live, so that it adds none to the limits."""


def expire(slot: Slot, now: float) -> Slot:
    """Forget what is past its retention."""
    current = slot.current
    if current is not None and not current.is_live and current.expires_at <= now:
        slot = slot._replace(current=None)
    if slot.gone and slot.gone[0].at + REMEMBERED <= now:
        slot = slot._replace(gone=tuple(gone for gone in slot.gone if gone.at + REMEMBERED > now))
    return slot


def reserve(slot: Slot, request: Queued, on_conflict: OnConflict) -> Outcome:
    """Queue a request, or name the rival that it has to follow or to wait for."""
    current, queued, gone = slot
    # The reply to the first attempt was lost. The request has moved on since, and finds out how when it begins.
    if _why_gone(slot, request.epoch) or (current is not None and current.epoch == request.epoch):
        return Outcome(slot, Verdict.QUEUED)
    others = [other for other in queued if other.epoch != request.epoch]
    # Only the first in the queue takes the place of the live stream; any further one adds to what is there.
    replaces = current is not None and current.is_live and not others
    if len(others) < len(queued):
        return Outcome(slot, Verdict.QUEUED, replaces=replaces)
    rival, is_same = _rival(slot, request.idempotency_key, on_conflict)
    if rival is None:
        changes = (Change(request, ResumableStatus.QUEUED),)
        return Outcome(Slot(current, (*queued, request), gone), Verdict.QUEUED, changes, replaces=replaces)
    if on_conflict == "reject" and not is_same:
        return Outcome(slot, Verdict.EXISTS, rival=rival.epoch)
    return Outcome(slot, Verdict.FOLLOW if rival is current else Verdict.WAIT, rival=rival.epoch)


def _rival(slot: Slot, key: str | None, on_conflict: OnConflict) -> tuple[Queued | Current | None, bool]:
    """What stands in the way of a request, and whether that is the same request, sent again."""
    current, queued = slot.current, slot.queued
    # The same request, sent again, wins over the rule: it gets the answer of the first attempt, under `reject` too.
    if key is not None:
        if current is not None and current.idempotency_key == key:
            return current, True
        if (same := next((other for other in queued if other.idempotency_key == key), None)) is not None:
            return same, True
    if on_conflict == "replace":
        return None, False
    if current is not None and current.is_live:
        return current, False
    return (queued[0] if queued else None), False


def begin(slot: Slot, epoch: str, now: float) -> Outcome:
    """Make a queued request the current epoch; what was there before, and what was queued earlier, is replaced."""
    current = slot.current
    if current is not None and current.epoch == epoch:
        return Outcome(slot, Verdict.BEGUN)
    epochs = [request.epoch for request in slot.queued]
    if epoch not in epochs:
        code = _why_gone(slot, epoch)
        return Outcome(slot, Verdict.STOPPED if code else Verdict.UNKNOWN, code=code)
    index = epochs.index(epoch)
    older, request, later = slot.queued[:index], slot.queued[index], slot.queued[index + 1 :]
    begun = Current(epoch, request.worker, request.idempotency_key, now)
    changes: tuple[Change, ...] = (Change(begun, ResumableStatus.IN_PROGRESS),)
    if current is None and not older:
        return Outcome(Slot(begun, later, slot.gone), Verdict.BEGUN, changes)
    replaced = epochs[:index]
    if current is not None:
        replaced.append(current.epoch)
        if current.is_live:
            changes = (_cancelled(current, "replaced", now), *changes)
    changes = (*(Change(each, ResumableStatus.CANCELLED, "replaced") for each in older), *changes)
    gone = (*slot.gone, *(Gone(each, "replaced", now) for each in replaced))
    return Outcome(Slot(begun, later, gone), Verdict.BEGUN, changes)


def release(slot: Slot, epoch: str) -> Outcome:
    """Take a request out of the queue that will not begin; no-op if it has begun."""
    return _dequeue(slot, [request for request in slot.queued if request.epoch == epoch])


def append(slot: Slot, epoch: str, first: int, last: int) -> Outcome:
    """Let the log of an epoch grow from `first` to `last`; refused unless it is the live one."""
    current = slot.current
    if current is None:
        return Outcome(slot, Verdict.ENDED if _why_gone(slot, epoch) else Verdict.MISSING)
    if current.epoch != epoch or not current.is_live:
        return Outcome(slot, Verdict.ENDED)
    # At `last`, this write has been made already, and its reply was lost.
    if current.tail not in (first, last):
        return Outcome(slot, Verdict.GAP)
    return Outcome(slot if current.tail == last else slot._replace(current=current._replace(tail=last)))


def end(slot: Slot, epoch: str, status: ResumableStatus, code: str, now: float, retention: float) -> Outcome:
    """End the current epoch as its producer says; it stays for the retention."""
    current = slot.current
    if current is None:
        return Outcome(slot, Verdict.ENDED if _why_gone(slot, epoch) else Verdict.MISSING)
    if current.epoch != epoch or not current.is_live:
        # A producer that ends its stream again must not learn that another worker has ended it.
        same = (current.epoch, current.status, current.code) == (epoch, status, code)
        return Outcome(slot, Verdict.OK if same else Verdict.ENDED)
    ended = _ended(current, status, code, now, now + retention)
    return Outcome(Slot(ended, slot.queued, slot.gone), Verdict.OK, (Change(ended, status),))


def stop(slot: Slot, epoch: str | None, now: float) -> Outcome:
    """Stop what is queued or live, and forget what has ended; only that epoch, if one is given."""
    current = slot.current
    stopped = [request for request in slot.queued if epoch in (None, request.epoch)]
    changes = [Change(request, ResumableStatus.CANCELLED, "cancelled") for request in stopped]
    gone = [request.epoch for request in stopped]
    if current is not None and epoch in (None, current.epoch):
        gone.append(current.epoch)
        if current.is_live:
            changes.append(_cancelled(current, "cancelled", now))
        current = None
    if not gone:
        return Outcome(slot)
    left = tuple(request for request in slot.queued if epoch not in (None, request.epoch))
    marks = (*slot.gone, *(Gone(each, "cancelled", now) for each in gone))
    return _restated(Slot(current, left, marks), changes)


def lose(slot: Slot, worker: str, now: float, retention: float) -> Outcome:
    """End what belongs to a worker that has died."""
    outcome = _dequeue(slot, [request for request in slot.queued if request.worker == worker])
    current = slot.current
    if current is None or current.worker != worker or not current.is_live:
        return outcome
    return _interrupted(outcome, now, retention)


def ensure_ended(slot: Slot, epoch: str, now: float, retention: float) -> Outcome:
    """Release a request; should it have begun without its worker learning of that, end it as lost."""
    if slot.current is not None and slot.current.epoch == epoch and slot.current.is_live:
        return _interrupted(Outcome(slot), now, retention)
    return release(slot, epoch)


def restore(slot: Slot, lost: Current) -> Outcome:
    """Put back a live epoch that the store has lost; it is written again from its `tail` on."""
    if _why_gone(slot, lost.epoch):
        return Outcome(slot, Verdict.ENDED)
    if slot.current is not None and (slot.current.epoch != lost.epoch or not slot.current.is_live):
        return Outcome(slot, Verdict.ENDED)
    queued = tuple(request for request in slot.queued if request.epoch != lost.epoch)
    return Outcome(slot._replace(current=lost, queued=queued))


def _why_gone(slot: Slot, epoch: str) -> str:
    return next((gone.code for gone in slot.gone if gone.epoch == epoch), "") if slot.gone else ""


def _cancelled(current: Current, code: str, now: float) -> Change:
    ended = _ended(current, ResumableStatus.CANCELLED, code, now, 0.0)
    return Change(ended, ResumableStatus.CANCELLED, code)


def _ended(current: Current, status: ResumableStatus, code: str, now: float, expires_at: float) -> Current:
    # In half the time of `_replace`: every stream comes by here.
    return Current(*current[:4], status, code, current.tail, now, expires_at)


def _dequeue(slot: Slot, lost: list[Queued]) -> Outcome:
    if not lost:
        return Outcome(slot)
    epochs = {request.epoch for request in lost}
    left = tuple(request for request in slot.queued if request.epoch not in epochs)
    return _restated(slot._replace(queued=left), [Change(request, ResumableStatus.FAILED) for request in lost])


def _interrupted(outcome: Outcome, now: float, retention: float) -> Outcome:
    slot = outcome.slot
    assert slot.current is not None
    ended = _ended(slot.current, ResumableStatus.INTERRUPTED, "producer_lost", now, now + retention)
    # The current epoch comes last, because that is what a lookup shows from now on.
    others = tuple(change for change in outcome.changes if change.stream != slot.current)
    changes = (*others, Change(ended, ResumableStatus.INTERRUPTED, "producer_lost"))
    return Outcome(slot._replace(current=ended), changes=changes)


def _restated(slot: Slot, changes: Iterable[Change]) -> Outcome:
    """Add what a lookup shows now, so that what watchers hear last is that."""
    shown = slot.shown
    if shown is not None:
        status = shown.status if isinstance(shown, Current) else ResumableStatus.QUEUED
        changes = (*changes, Change(shown, status))
    return Outcome(slot, changes=tuple(changes))
