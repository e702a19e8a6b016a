"""The user's hooks are harmless: they may block, hang or raise anything."""

import asyncio
import threading

import anyio.to_thread
import pytest

from fastapi_resumable._run import hooks as hooks_module
from fastapi_resumable._run.hooks import MAX_THREADS, Hooks
from fastapi_resumable._stream.tasks import Tasks
from tests.support.asgi import bounded, until


class Finished:
    """All of a finished stream that its hooks' owner looks at."""

    id = "chat"
    owner = None
    epoch = "mfrggzdfmztwq2lk"


def make(*hooks):
    made = Hooks(Tasks())
    for hook in hooks:
        made.add(hook)
    return made


async def test_hooks_that_block_leave_the_applications_threads_alone() -> None:
    """Were there as many of them as it has threads: `def` endpoints run on."""
    release = threading.Event()
    running = []

    def block(finished):
        running.append(finished)
        release.wait(30)

    hooks = make(block)
    try:
        tasks = [hooks.run(Finished()) for _ in range(100)]
        await until(lambda: len(running) == MAX_THREADS)
        assert await bounded(anyio.to_thread.run_sync(lambda: "served")) == "served"
        assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    finally:
        release.set()
    await bounded(asyncio.wait(tasks))
    assert len(running) == 100


@pytest.mark.parametrize("error", [ValueError, StopIteration, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("in_thread", [True, False])
async def test_what_a_hook_raises_is_logged_and_the_next_one_runs(error, in_thread, caplog) -> None:
    """Whatever it is."""
    seen = []

    def fail(finished):
        raise error("of the hook's own")

    async def fail_later(finished):
        raise error("of the hook's own")

    await bounded(make(fail if in_thread else fail_later, seen.append).run(Finished()))

    assert len(seen) == 1
    assert "of the hook's own" in caplog.text


async def test_a_hook_that_hangs_is_given_up(monkeypatch, caplog) -> None:
    """After a while, so that no stream waits for it; and in a thread that does not keep the process."""
    monkeypatch.setattr(hooks_module, "HOOK_TIMEOUT", 0.02)
    release = threading.Event()
    threads = []

    async def hang(finished):
        await asyncio.Event().wait()

    def block(finished):
        threads.append(threading.current_thread())
        release.wait(30)

    await bounded(make(hang, block).run(Finished()))
    release.set()

    assert [thread.daemon for thread in threads] == [True]
    assert caplog.text.count("TimeoutError") >= 2


async def test_a_hook_that_gets_no_thread_takes_no_place(monkeypatch, caplog) -> None:
    """A process that had no more threads for a while runs its hooks again afterwards."""
    seen = []
    hooks = make(seen.append)

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(MAX_THREADS):
            await bounded(hooks.run(Finished()))
    assert caplog.text.count("can't start new thread") >= MAX_THREADS
    await bounded(hooks.run(Finished()))
    assert len(seen) == 1


async def test_only_so_many_streams_wait_for_hooks_that_hang(monkeypatch, caplog) -> None:
    """What they hold is bounded."""
    monkeypatch.setattr(hooks_module, "MAX_PENDING", 3)
    let_go = asyncio.Event()

    async def hang(finished):
        await let_go.wait()

    hooks = make(hang)
    tasks = [hooks.run(Finished()) for _ in range(4)]
    assert tasks[3] is None
    assert "none was called for stream 'chat'" in caplog.text
    let_go.set()
    await bounded(asyncio.wait(tasks[:3]))


async def test_the_wait_for_hooks_has_a_bound() -> None:
    """A shutdown does not wait for one that hangs."""

    async def hang(finished):
        await asyncio.Event().wait()

    hooks = make(hang)
    task = hooks.run(Finished())
    await bounded(hooks.wait(0.01))
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
