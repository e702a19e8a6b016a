"""What a `RedisStore` has on one event loop: a worker, and the parts that stream. They hear here what it hears."""

import asyncio
import json

from ..._core.ids import StreamKey
from ..._stream.stream import Limits
from ...exceptions import StoreUnavailable
from ..shared.streams import WorkerStreams
from .calls import Calls, Epoch
from .keys import Keys
from .link import Client
from .reader import RedisReader
from .transitions import Transitions
from .worker import RedisWorker
from .writer import RedisWriter


class RedisBackend:
    """Puts the parts together."""

    def __init__(
        self, client: Client, keys: Keys, limits: Limits, *, lease: float, timeout: float, degrade: bool, owns: bool
    ) -> None:
        """`owns`: whether to close the client at the end."""
        self.loop = asyncio.get_running_loop()
        self.worker = RedisWorker(client, keys, self, lease=lease, timeout=timeout)
        self.tasks = self.worker.tasks
        self.streams = WorkerStreams(limits)
        calls = Calls(keys, self.worker.name, limits, lease)
        self.transitions = Transitions(self.worker, calls, self.streams, limits)
        self.writer = RedisWriter(self.worker, calls, self.transitions, self.streams, degrade=degrade)
        self.reader = RedisReader(self.worker, calls, self.transitions, self.streams, lease)
        self._client = client if owns else None
        # What the store asks for is done by the parts.
        self.start, self.subscribe = self.worker.start, self.worker.subscribe
        self.reserve, self.begin = self.transitions.reserve, self.transitions.begin
        self.release, self.stop = self.transitions.release, self.transitions.stop
        self.state, self.states = self.transitions.state, self.transitions.states
        self.begin_later = self.writer.begin_later

    def on_message(self, message: str, epoch: str, about: str) -> None:
        """Do what a worker has told this one."""
        if message == "room" and epoch in self.streams.local:
            self.streams.local[epoch].note_room()
        elif message == "check" and not self.streams.has(epoch):
            self.transitions.abandon(Epoch(StreamKey(*json.loads(about)), epoch))
        elif message == "stop":
            self.streams.stop(epoch, about)

    def on_return(self) -> None:
        """Ask whether Redis still has everything."""
        self.writer.check_all()
        self.reader.note_return()

    def on_outage(self, failure: StoreUnavailable) -> None:
        """Send the readers away."""
        self.streams.fail_followed(failure)

    def on_lapse(self) -> None:
        """End what others have given up."""
        for epoch in list(self.streams.queued):
            self.streams.stop(epoch, "interrupted")
        self.writer.give_up(list(self.streams.local.values()))

    async def look(self) -> None:
        """What is done every second."""
        await self.reader.look()
        await self.writer.touch()

    async def aclose(self) -> None:
        """Give back the lease and the connections."""
        await self.worker.aclose()
        for stream in list(self.streams.local.values()):
            # For producers that ignore their cancellation, and write on.
            stream.on_outage(StoreUnavailable("The store is closed."))
        await self.tasks.aclose()
        if self._client is not None:
            await self._client.aclose()
