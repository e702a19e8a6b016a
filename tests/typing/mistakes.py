"""What type checkers must refuse, a mistake on each line that ends with a comment of theirs."""

from fastapi import FastAPI

from fastapi_resumable import Resumable, ResumableMiddleware, ResumableStream

resumable = Resumable()


@resumable.stream
async def chat(prompt: str) -> None:
    """An endpoint of one argument."""


async def mistakes(stream: ResumableStream) -> None:
    """All of them."""
    Resumable(retension=5)  # mistake
    Resumable("/v1")  # mistake
    Resumable(on_conflict="keep")  # mistake
    Resumable(ping=None)  # mistake
    await chat(1)  # mistake
    await chat()  # mistake
    stream("no response")  # mistake
    resumable.on_finish("no function")  # mistake
    ResumableMiddleware(FastAPI(), paths=["/chat"])  # mistake
