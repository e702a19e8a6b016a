"""How a test of the suite is played: stores are opened, the test runs on an event loop of its own, all is closed.

The tests are plain functions for pytest, so no plugin for asynchronous tests is needed, and none is in the way.
"""

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Concatenate, ParamSpec

from fastapi_resumable._stream.stream import Limits
from fastapi_resumable.stores.base import Store

P = ParamSpec("P")


class Conformance:
    """What a store's author fills in, and what the tests are played with.

    pytest makes a new object for each test: what `open_store` keeps on `self` is for that test alone.
    """

    retention: float = 1.0
    """The retention, in seconds, in the tests that wait for its end."""
    deadline: float = 120.0
    """Seconds that one test may take."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    """What makes the event loops that the tests run on; by default asyncio's own."""

    async def open_store(self) -> Store:
        """Return a new store, not configured yet; all those of one test have the same backing, empty at first."""
        raise NotImplementedError("Return your store from open_store().")

    async def close_store(self, store: Store) -> None:
        """Close a store after a test; remove what it leaves behind, if anything is to be removed."""
        await store.aclose()

    async def pass_time(self, seconds: float) -> None:
        """Let time pass for the store. A store with a clock of its own can set that forward instead."""
        await asyncio.sleep(seconds)

    async def play(self, test: Callable[..., Coroutine[Any, Any, None]], count: int, limits: Limits) -> None:
        """Run a test on `count` stores. No task may be left afterwards."""
        async with asyncio.timeout(self.deadline):
            async with AsyncExitStack() as stack:
                stores = []
                for _ in range(count):
                    store = await self.open_store()
                    stack.push_async_callback(self.close_store, store)
                    store.configure(limits)
                    stores.append(store)
                await test(*stores)
            assert_nothing_runs()


def assert_nothing_runs() -> None:
    """Fail if there is any task but the current one."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"the store was closed and leaves tasks: {left}"


def scenario(
    stores: int = 1, **limits: Any
) -> Callable[
    [Callable[Concatenate[Any, P], Coroutine[Any, Any, None]]],
    Callable[..., None],
]:
    """Make a test of a coroutine function that takes `stores` stores, configured with `limits`, before its parameters.

    The retention is `Conformance.retention` if it is given as 0.
    """

    def decorate(function: Callable[Concatenate[Any, P], Coroutine[Any, Any, None]]) -> Callable[..., None]:
        @functools.wraps(function)
        def test(self: Conformance, **parameters: Any) -> None:
            chosen = limits | ({"retention": self.retention} if limits.get("retention") == 0 else {})
            with asyncio.Runner(loop_factory=self.loop_factory) as runner:
                runner.run(self.play(functools.partial(function, self, **parameters), stores, Limits(**chosen)))

        # pytest must not take the stores for fixtures.
        signature = inspect.signature(function)
        of_self, *others = signature.parameters.values()
        test.__signature__ = signature.replace(parameters=[of_self, *others[stores:]])  # type: ignore[attr-defined]
        return test

    return decorate
