"""Recording what a `StreamingResponse` iterates over without the messages that would only be taken apart again."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import monotonic

from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from .recorder import Recorder

_BYTES = (bytes, memoryview)


@contextmanager
def shortened(response: Response, recorder: Recorder) -> Iterator[None]:
    """Within the context, a response that streams as Starlette does hands its chunks to the recorder."""
    if not isinstance(response, StreamingResponse) or not _is_starlettes(response):
        yield
        return
    response.stream_response = partial(_stream, response, recorder)  # type: ignore[method-assign]  # undone below
    try:
        yield
    finally:
        del response.stream_response


def _is_starlettes(response: StreamingResponse) -> bool:
    return type(response).stream_response is StreamingResponse.stream_response and "stream_response" not in vars(
        response
    )


async def _stream(response: StreamingResponse, recorder: Recorder, send: Send) -> None:
    """`StreamingResponse.stream_response`: the same, but for what nobody would see of each chunk."""
    if send != recorder.send:
        # A subclass wants to see the messages.
        await StreamingResponse.stream_response(response, send)
        return
    producer, turns = recorder.producer, recorder.turns
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    async for chunk in response.body_iterator:
        if not isinstance(chunk, _BYTES):
            chunk = chunk.encode(response.charset)  # noqa: PLW2901  # as in the original
        stream = producer.stream
        if stream is not None and type(chunk) is bytes and chunk and stream.offer(chunk, now := monotonic()):
            previous, producer.last_write = producer.last_write, now
            if now > turns.ends:
                await turns.give_way(previous, now)
        else:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
