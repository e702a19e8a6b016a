"""What other requests wait for while a server is busy, asked from a process that the load does not hold up.

`python -m tests.benchmarks.probe PORT` asks for `/alive` again and again until its standard input is closed, and prints
how long each answer took, in milliseconds; last what it has waited for one that has not come.
"""

import json
import select
import socket
import sys
import time

PAUSE = 0.005
"""Seconds between an answer and the next request."""


def probe(port: int) -> list[float]:
    """Ask until standard input is closed."""
    waits: list[float] = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while True:
            begun = time.monotonic()
            connection.sendall(b"GET /alive HTTP/1.1\r\nhost: bench\r\n\r\n")
            answer = b""
            while not answer.endswith(b'"yes"'):
                ready, _, _ = select.select([connection, sys.stdin], [], [])
                if sys.stdin in ready:
                    return [*waits, (time.monotonic() - begun) * 1e3]
                answer += connection.recv(4096)
            waits.append((time.monotonic() - begun) * 1e3)
            if select.select([sys.stdin], [], [], PAUSE)[0]:
                return waits


if __name__ == "__main__":
    print(json.dumps(probe(int(sys.argv[1]))))
