"""Generators that never await share the event loop; others are not held up by the way they share it."""

import asyncio
from itertools import pairwise
from time import monotonic

from fastapi_resumable._stream.turns import TURN, Turns
from tests.support.asgi import until


class Writer:
    """Something that writes, and gives way where it has to; time goes on as it says."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.last = 0.0

    async def write(self, now: float) -> bool:
        """Whether it had to ask for its turn."""
        previous, self.last = self.last, now
        if now > self.turns.ends:
            await self.turns.give_way(previous, now)
            return True
        return False


async def test_who_writes_once_never_queues():
    """Even where others have held the loop for long: it was not this one."""
    turns = Turns()
    now = monotonic()
    first, second = Writer(turns), Writer(turns)
    await first.write(now)
    rounds = count_rounds()
    await second.write(now + 1.0)
    assert rounds() == 0


def count_rounds():
    """How often the event loop goes round from now on."""
    seen = 0

    def tick() -> None:
        nonlocal seen
        seen += 1
        handle[0] = asyncio.get_running_loop().call_soon(tick)

    handle = [asyncio.get_running_loop().call_soon(tick)]

    def stop() -> int:
        handle[0].cancel()
        return seen

    return stop


async def test_who_holds_the_loop_for_longer_than_a_turn_lets_it_go_round():
    """And goes on afterwards."""
    turns = Turns()
    writer = Writer(turns)
    now = monotonic()
    await writer.write(now)
    assert not await writer.write(now + TURN)
    rounds = count_rounds()
    await writer.write(now + 1.0)
    assert rounds() >= 1


async def test_who_was_released_has_a_turn_of_its_own():
    """Measured from its release; then it queues again."""
    turns = Turns()
    writer = Writer(turns)
    now = monotonic()
    await writer.write(now)
    await writer.write(now + 1.0)
    writer.last = monotonic()
    assert not await writer.write(monotonic())
    rounds = count_rounds()
    await writer.write(monotonic() + 1.0)
    assert rounds() >= 1


async def queue_up(turns: Turns, now: float, released: list[int], number: int) -> None:
    """Write for too long, and note when it may go on."""
    writer = Writer(turns)
    await writer.write(now)
    await writer.write(now + 1.0)
    released.append(number)


async def test_one_is_released_in_each_round():
    """In the order in which they came."""
    turns = Turns()
    order: list[int] = []
    now = monotonic()

    tasks = [asyncio.create_task(queue_up(turns, now, order, number)) for number in range(5)]
    lengths = []
    while len(order) < 5:
        await asyncio.sleep(0)
        lengths.append(len(order))
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]
    assert all(later - earlier <= 1 for earlier, later in pairwise(lengths)), lengths


async def test_one_that_is_cancelled_while_it_queues_holds_nobody_up():
    """Nor does the turn that it had."""
    turns = Turns()
    now = monotonic()
    done: list[int] = []

    tasks = [asyncio.create_task(queue_up(turns, now, done, number)) for number in range(4)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[2].cancel()
    async with asyncio.timeout(5):
        await asyncio.wait(tasks)
    assert done == [1, 3]


def test_a_queue_that_was_left_behind_in_another_event_loop_holds_nobody_up():
    """Test clients run an application in one loop after the other."""
    turns = Turns()

    async def leave_behind() -> None:
        now = monotonic()
        tasks = [asyncio.create_task(queue_up(turns, now, [], number)) for number in range(3)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)

    async def go_on() -> None:
        writer = Writer(turns)
        async with asyncio.timeout(5):
            now = monotonic() + 10.0
            await writer.write(now)
            await writer.write(now + 10.0)
            await writer.write(now + 20.0)

    asyncio.run(leave_behind())
    asyncio.run(go_on())


async def test_nothing_runs_while_nobody_writes():
    """The timer that watches the loop is not set again by itself."""
    turns = Turns()
    await Writer(turns).write(monotonic())
    await until(lambda: not turns.ends)
    assert turns._timer is None
