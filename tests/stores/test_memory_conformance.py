"""The suite that every store has to pass, on the store in memory."""

from fastapi_resumable import MemoryStore
from tests.conformance import StoreConformance


class TestMemoryStore(StoreConformance):
    """With a clock that the tests set forward."""

    now = 1_000_000.0

    async def open_store(self) -> MemoryStore:
        return MemoryStore(clock=lambda: self.now, wall_clock=lambda: self.now)

    async def pass_time(self, seconds: float) -> None:
        self.now += seconds
