"""The bad line itself cuts where and as often as it says, and nowhere else."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.support.cutting import HOST, CuttingProxy

TIMEOUT = 60
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"
BODY = bytes(range(250)) * 4
REQUEST = b"GET / HTTP/1.1\r\n\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """Answers each 18 bytes with `HEAD` and `BODY`, and keeps the connection."""

    def answer(peer: socket.socket) -> None:
        with peer, suppress(OSError):
            while peer.recv(len(REQUEST), socket.MSG_WAITALL) == REQUEST:
                peer.sendall(HEAD + BODY)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server((HOST, 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def read(line: CuttingProxy, requests: int = 1) -> tuple[bytes, bool]:
    """What a client gets for so many requests on one connection, and whether that ended in a reset."""
    received = b""
    try:
        with socket.create_connection((HOST, line.port), TIMEOUT) as client:
            for number in range(1, requests + 1):
                client.sendall(REQUEST)
                while len(received) < number * len(HEAD + BODY) and (piece := client.recv(65536)):
                    received += piece
            client.shutdown(socket.SHUT_WR)
            while piece := client.recv(65536):
                received += piece
    except ConnectionError:
        return received, True
    return received, False


def test_cuts_fall_into_bodies_until_they_are_spent(server: int) -> None:
    """Every one of 50 connections breaks off within the body, some by FIN and some by RST; the next are whole."""
    with CuttingProxy(server, seed=1, cuts=50, least=1, most=999) as line:
        broken = [read(line) for _ in range(50)]
        assert all(len(HEAD) < len(got) < len(HEAD + BODY) and (HEAD + BODY).startswith(got) for got, _ in broken)
        assert (line.cuts, line.spent, line.connections) == (50, True, 50)
        assert 10 < line.resets == sum(reset for _, reset in broken) < 40
        assert [read(line) for _ in range(3)] == [(HEAD + BODY, False)] * 3
        assert line.cuts == 50


def test_the_same_seed_cuts_at_the_same_bytes(server: int) -> None:
    """And another one elsewhere."""

    def cuts(seed: int) -> list[tuple[bytes, bool]]:
        with CuttingProxy(server, seed=seed, cuts=20, most=999) as line:
            return [read(line) for _ in range(20)]

    assert cuts(1) == cuts(1) != cuts(2)


def test_a_kept_connection_is_counted_as_one(server: int) -> None:
    """The bytes of all bodies on it add up; the heads between them do not count, unless they are asked for."""
    with CuttingProxy(server, cuts=1, least=1500, most=1500) as line:
        assert len(read(line, requests=2)[0]) == 2 * len(HEAD) + 1500
    with CuttingProxy(server, cuts=1, least=7, most=7, heads=True) as line:
        assert read(line)[0] == HEAD[:7]
    with CuttingProxy(server, cuts=1, least=0, most=0) as line:
        assert read(line)[0] == HEAD


def test_a_server_that_is_not_there_is_a_reset(server: int) -> None:
    """As a line to a dead host, soon found out."""
    with socket.create_server((HOST, 0)) as closed:
        port = closed.getsockname()[1]
    with CuttingProxy(port) as line:
        assert read(line) == (b"", True)
    assert server
