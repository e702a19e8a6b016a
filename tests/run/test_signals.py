"""life/signals.py: hearing of the signal beside whoever handles it."""

import asyncio
import os
import signal
import threading

import pytest

from fastapi_resumable._run.signals import TerminationWatch


@pytest.fixture
def server_heard():
    """A server's own handlers, put back afterwards."""
    heard: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, frame: heard.append(number))
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)


async def raised(number: int) -> None:
    os.kill(os.getpid(), number)
    for _ in range(20):
        await asyncio.sleep(0)


async def test_both_hear_the_signal(server_heard):
    """The server's handler is called as before, and so are we, on the event loop."""
    ours: list[str] = []
    watch = TerminationWatch(lambda: ours.append("heard"))
    watch.start()
    watch.start()
    await raised(signal.SIGTERM)
    watch.stop()
    await raised(signal.SIGINT)

    assert server_heard == [signal.SIGTERM, signal.SIGINT]
    assert ours == ["heard"]


async def test_two_of_them_pass_signals_on_in_either_order_of_stopping(server_heard):
    """A link in the middle of the chain cannot be taken out, but it falls silent."""
    ours: list[str] = []
    first, second = TerminationWatch(lambda: ours.append("first")), TerminationWatch(lambda: ours.append("second"))
    first.start()
    second.start()
    first.stop()
    await raised(signal.SIGTERM)
    assert (ours, server_heard) == (["second"], [signal.SIGTERM])

    first.start()
    await raised(signal.SIGTERM)
    assert sorted(ours) == ["first", "second", "second"]
    first.stop()
    second.stop()
    await raised(signal.SIGTERM)

    assert len(ours) == 3
    assert len(server_heard) == 3


def test_a_watch_is_taken_along_to_a_new_event_loop(server_heard):
    """The loop of a former start may be closed."""
    ours: list[str] = []
    watch = TerminationWatch(lambda: ours.append("heard"))

    async def start() -> None:
        watch.start()

    async def start_and_raise() -> None:
        watch.start()
        await raised(signal.SIGTERM)

    asyncio.run(start())
    os.kill(os.getpid(), signal.SIGTERM)
    asyncio.run(start_and_raise())
    watch.stop()

    assert ours == ["heard"]
    assert len(server_heard) == 2


def test_nothing_is_installed_where_the_signal_has_no_handler():
    """Without a server the default stays: the process dies."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:

        async def start() -> None:
            TerminationWatch(lambda: None).start()

        asyncio.run(start())
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_off_the_main_thread_nothing_is_installed(server_heard):
    """Python allows no handlers there."""
    before = signal.getsignal(signal.SIGTERM)

    async def start() -> None:
        TerminationWatch(lambda: None).start()

    thread = threading.Thread(target=lambda: asyncio.run(start()))
    thread.start()
    thread.join()

    assert signal.getsignal(signal.SIGTERM) is before
