"""The contract holds on any store: with RESUMABLE_TEST_STORE=redis, these tests run on a real Redis."""

import os
from collections.abc import Iterator

import pytest

from tests.support.redis_server import RedisServer


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer | None]:
    """The Redis of all tests of this process, if they are to use one."""
    if os.environ.get("RESUMABLE_TEST_STORE") != "redis":
        yield None
        return
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(autouse=True)
def chosen_store(shared_redis: RedisServer | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty store for each test, chosen as an operator would."""
    if shared_redis is not None:
        with shared_redis.client() as client:
            client.flushall()
        monkeypatch.setenv("FASTAPI_RESUMABLE_STORE", shared_redis.url)
