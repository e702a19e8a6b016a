"""A poem for the `EventSource` page: a resumable GET endpoint that the browser's own client comes back to by itself."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from example_app import llm
from fastapi_resumable import Resumable


def recital(run: Annotated[str | None, Query()] = None) -> str | None:
    """Name the stream in the query, because an `EventSource` cannot send headers of our choice."""
    return run


# A page that is reloaded asks for the same recital again: it attaches to the one that is under way.
resumable = Resumable(prefix="/demo", stream_id=recital, on_conflict="attach")
router = APIRouter(prefix="/demo")


@router.get("/poem")
@resumable.stream
async def poem() -> StreamingResponse:
    """Recite a poem, line by line. The stream is named in the query: `?run=<id>`."""

    async def verses() -> AsyncIterator[str]:
        lines = llm.PROSE["jabberwocky"].splitlines()
        for number, line in enumerate(lines, start=1):
            verse = {"number": number, "line": line}
            yield f"event: verse\nretry: 1000\ndata: {json.dumps(verse)}\n\n"
            await asyncio.sleep(4 / llm.words_per_second())

    return StreamingResponse(verses(), media_type="text/event-stream")
