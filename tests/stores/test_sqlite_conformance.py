"""The suite that every store has to pass, on SQLite: one file, and two stores for two workers."""

from pathlib import Path

import pytest

from fastapi_resumable import SqliteStore
from tests.conformance import SharedStoreConformance


class TestSqliteStore(SharedStoreConformance):
    """Each test with a file of its own."""

    @pytest.fixture(autouse=True)
    def backing(self, tmp_path: Path) -> None:
        self.path = tmp_path / "streams.db"

    async def open_store(self) -> SqliteStore:
        return SqliteStore(self.path)
