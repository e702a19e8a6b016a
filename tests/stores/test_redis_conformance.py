"""The suite that every store has to pass, on Redis: a real server, and two stores for two workers."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from fastapi_resumable import RedisStore
from tests.conformance import SharedStoreConformance
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


class TestRedisStore(SharedStoreConformance):
    """Each test under a prefix of its own; afterwards, every key that it leaves has an expiry."""

    @pytest.fixture(autouse=True)
    def backing(self, redis_server: RedisServer) -> Iterator[None]:
        self.url = redis_server.url
        self.prefix = f"test-{uuid4().hex}"
        yield
        assert redis_server.list_keys_without_expiry(f"{self.prefix}*") == []

    async def open_store(self) -> RedisStore:
        return RedisStore(self.url, key_prefix=self.prefix)
