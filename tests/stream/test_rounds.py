"""life/rounds.py: one timer for many, never early, and none when there is nothing to look at."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from time import monotonic

import pytest

from fastapi_resumable._stream.rounds import AT_ONCE, STEPS, Rounds

INTERVAL = 0.02


class Thing:
    """Notes when it is looked at, and does what it is told then."""

    def __init__(self, act: Callable[[float], float | None] = lambda now: None) -> None:
        self.looks: list[float] = []
        self._act = act
        self._looked = asyncio.Event()

    def look(self, now: float) -> float | None:
        self.looks.append(now)
        self._looked.set()
        return self._act(now)

    async def looked_at(self, times: int) -> None:
        async with asyncio.timeout(10):
            while len(self.looks) < times:
                self._looked.clear()
                await self._looked.wait()


async def test_a_thing_is_looked_at_again_and_again_and_never_early():
    """An interval after it was added, and an interval after each look."""
    rounds, thing = Rounds(INTERVAL), Thing()
    added = monotonic()
    rounds.add(thing)
    await thing.looked_at(4)
    rounds.discard(thing)

    assert thing.looks[0] >= added + INTERVAL
    assert thing.looks[3] >= added + 4 * INTERVAL


async def test_a_thing_that_is_not_due_says_when_it_will_be():
    """It is looked at then, and not before."""
    dues: list[float] = []

    def act(now: float) -> float | None:
        dues.append(now + INTERVAL / 2)
        return dues[-1]

    rounds, thing = Rounds(INTERVAL), Thing(act)
    rounds.add(thing)
    await thing.looked_at(5)
    rounds.discard(thing)

    assert all(look > due for due, look in zip(dues, thing.looks[1:], strict=False))


async def test_what_is_discarded_is_not_looked_at_and_the_last_takes_the_timer_along():
    """Nothing runs when there is nothing to look at; discarding twice is no fault."""
    rounds, thing, other = Rounds(INTERVAL), Thing(), Thing()
    rounds.add(thing)
    rounds.add(other)
    rounds.discard(thing)
    assert rounds._timer is not None
    await other.looked_at(2)
    rounds.discard(other)
    rounds.discard(other)

    assert thing.looks == []
    assert rounds._timer is None
    assert not rounds._slots


async def test_things_may_come_and_go_during_a_look():
    """One that goes with the last look, its own or another's, is not looked at; one that comes then is."""
    rounds, newcomer = Rounds(INTERVAL), Thing()
    things: list[Thing] = []

    def act(now: float) -> float | None:
        for thing in things:
            rounds.discard(thing)
        rounds.add(newcomer)
        return now

    things += [Thing(act) for _ in range(3)]
    for thing in things:
        rounds.add(thing)
    await newcomer.looked_at(2)
    rounds.discard(newcomer)

    assert sorted(len(thing.looks) for thing in things) == [0, 0, 1]
    assert rounds._timer is None


async def test_one_that_fails_does_not_keep_the_others_from_being_looked_at():
    """The event loop is told of the error; the next round goes on."""

    def fail(now: float) -> float | None:
        raise LookupError

    errors: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context["exception"]))
    rounds, broken, sound = Rounds(INTERVAL), Thing(fail), Thing()
    rounds.add(broken)
    rounds.add(sound)
    await sound.looked_at(2)
    await broken.looked_at(2)
    rounds.discard(broken)
    rounds.discard(sound)

    assert len(errors) == len(broken.looks)
    assert all(isinstance(error, LookupError) for error in errors)


async def test_many_that_fall_due_at_once_leave_the_loop_to_others_in_between():
    """So many at a time, and no more before everybody else has had a turn."""
    rounds, looks = Rounds(10 * INTERVAL), [0]

    def count(now: float) -> float | None:
        looks.append(looks[-1] + 1)
        return None

    things = [Thing(count) for _ in range(3 * AT_ONCE)]
    for thing in things:
        rounds.add(thing)
    seen = [0]
    async with asyncio.timeout(10):
        while looks[-1] < len(things):
            await asyncio.sleep(0)
            seen.append(looks[-1])
    for thing in things:
        rounds.discard(thing)

    assert max(later - sooner for sooner, later in pairwise(seen)) <= AT_ONCE


async def test_what_a_held_up_loop_has_missed_is_not_made_up_for():
    """One look after the pause, and the next an interval later."""
    rounds, thing = Rounds(INTERVAL), Thing()
    rounds.add(thing)
    resumes = monotonic() + 5 * INTERVAL
    while monotonic() < resumes:
        pass
    await thing.looked_at(2)
    rounds.discard(thing)

    assert thing.looks[0] >= resumes
    assert thing.looks[1] - thing.looks[0] > INTERVAL * (1 - 1 / STEPS)


@pytest.mark.parametrize("leaves", [True, False])
def test_a_second_event_loop_begins_anew(leaves: bool) -> None:
    """What the first one left behind is forgotten, and nothing waits for its timer."""
    rounds = Rounds(INTERVAL)
    left: list[Thing] = []

    async def leave() -> None:
        left.append(Thing())
        rounds.add(left[0])
        if not leaves:
            rounds.discard(left[0])

    async def go_on() -> None:
        thing = Thing()
        rounds.add(thing)
        await thing.looked_at(2)
        rounds.discard(thing)

    asyncio.run(leave())
    asyncio.run(go_on())

    assert left[0].looks == []
    assert rounds._timer is None
