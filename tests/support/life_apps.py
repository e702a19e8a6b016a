"""Apps whose producers the tests play by hand: one endpoint, in every face of the library and every kind of answer."""

import asyncio
import gc
import inspect
import queue
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sse_starlette import EventSourceResponse as SseStarletteResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from fastapi_resumable import MemoryStore, Resumable, ResumableMiddleware, ResumableStream
from tests.support.asgi import LIMIT, Client, Exchange, bounded, until

NativeEventSource: Any
try:
    from fastapi.sse import EventSourceResponse

    NativeEventSource = EventSourceResponse
except ImportError:  # an older FastAPI has no `yield` endpoints
    NativeEventSource = None

FACES = ("decorator", "dependency", "both", "route_class", "middleware", "mounted")
"""The four faces; `both` is decorator and dependency on one endpoint, `mounted` the middleware over a Starlette app."""
PLACES = ("decorator", "route_class", "middleware")
"""One face for each place at which a request is taken over: at the endpoint, at its route, around the application.

What does not depend on more than that is looked at here; `test_faces_matrix.py` shows that all six faces agree.
"""
RESPONSES = ("async generator", "sync generator", "sse-starlette")
"""What an endpoint may return."""
YIELDS = ("yield sse", "yield sse in def", "yield json lines", "yield raw") if NativeEventSource else ()
"""Endpoints that yield, where FastAPI has them."""

INSIDE = ("decorator", "dependency", "both", "route_class")
"""The faces inside the app's exception handlers. A middleware is outside of them."""

ID = "X-Conversation-Id"
_END = object()


class Prompt(BaseModel):
    """The body of the endpoint."""

    text: str = "hello"


class Run:
    """One run of the endpoint, whose generator yields what the test puts."""

    def __init__(self, loop: asyncio.AbstractEventLoop, trace: list[str]) -> None:
        self._loop = loop
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._sync_inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.trace = trace
        self.admitted = asyncio.Event()
        self.started = asyncio.Event()
        self.closed = asyncio.Event()
        self.endings: list[str] = []
        self.yielded = 0
        self.request: Request | None = None
        self.stream: ResumableStream | None = None

    def put(self, *values: str) -> None:
        """Let the generator yield these."""
        for value in values:
            self._inbox.put_nowait(value)
            self._sync_inbox.put(value)

    def finish(self) -> None:
        """Let the generator return."""
        self.put(_END)  # type: ignore[arg-type]

    def fail(self, error: BaseException) -> None:
        """Let the generator raise."""
        self.put(error)  # type: ignore[arg-type]

    async def wait_closed(self) -> None:
        """Wait until the generator's ``finally`` has run."""
        await bounded(self.closed.wait(), "the generator's finally block")

    async def frames(self, encode: Callable[[str], Any]) -> AsyncGenerator[Any, None]:
        """The async generator."""
        self._begin()
        try:
            while (item := await self._inbox.get()) is not _END:
                if isinstance(item, BaseException):
                    raise item
                self.yielded += 1
                yield encode(item)
            self.endings.append("finished")
        except BaseException as error:
            self.endings.append(type(error).__name__)
            raise
        finally:
            self._close()

    def frames_in_thread(self, encode: Callable[[str], Any]) -> Iterator[Any]:
        """The same as a sync generator, which runs in threads."""
        self._begin()
        try:
            while (item := self._sync_inbox.get(timeout=LIMIT)) is not _END:
                if isinstance(item, BaseException):
                    raise item
                self.yielded += 1
                yield encode(item)
            self.endings.append("finished")
        except BaseException as error:
            self.endings.append(type(error).__name__)
            raise
        finally:
            self._close()

    def _begin(self) -> None:
        self._tell(self.started)

    def _close(self) -> None:
        self.trace.append("generator closed")
        self._tell(self.closed)

    def _tell(self, event: asyncio.Event) -> None:
        # A generator that nobody closes is closed by the garbage collector, the loop long gone.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(event.set)


async def closed(run: Run, kind: str) -> None:
    """The generator's finally has run; some are closed by the garbage collector.

    Starlette leaves a sync one to it after a disconnect, too, because nobody can cancel that; and FastAPI one of its
    own event streams that is between two events. Before Python 3.12 the latter is freed at once.
    """

    async def collected() -> None:
        while not run.closed.is_set():
            gc.collect()
            await asyncio.sleep(0.01)

    if kind in ("sync generator", "yield sse in def") or (kind == "yield sse" and sys.version_info >= (3, 12)):
        run.request = run.stream = None
        await bounded(collected(), "the generator's finally block")
    await run.wait_closed()


def sse(value: str) -> str:
    """A value as a server-sent event."""
    return f"data: {value}\n\n"


class Stage:
    """An app under test, the runs of its endpoint in order, and a trace of what happened around them."""

    def __init__(self, *, gated: bool = False) -> None:
        self._loop = asyncio.get_running_loop()
        self._gated = gated
        self._last: Exchange | None = None
        self.app: Any = FastAPI()
        self.inner: Any = self.app
        """The app that has the endpoint, if it is not `app` itself."""
        self.path = "/chat"
        self.resumable: Resumable | None = None
        self.runs: list[Run] = []
        self.trace: list[str] = []

    def new_run(self, request: Request | None = None, stream: ResumableStream | None = None) -> Run:
        """Called by the endpoint."""
        run = Run(self._loop, self.trace)
        run.request, run.stream = request, stream
        if not self._gated:
            run.admitted.set()
        self.runs.append(run)
        return run

    async def run(self, number: int = 0) -> Run:
        """The ``number``-th run of the endpoint, once it has begun."""
        last = self._last
        await until(
            lambda: len(self.runs) > number or (last is not None and last.over), f"run {number} of the endpoint"
        )
        assert len(self.runs) > number, f"no run, but {last and last.messages}, {last and last.error!r}"
        return self.runs[number]

    async def session(self) -> AsyncIterator[list[str]]:
        """A dependency with ``yield``, such as a database session."""
        self.trace.append("session opened")
        try:
            yield self.trace
        except BaseException as error:
            self.trace.append(f"session saw {type(error).__name__}")
            raise
        finally:
            self.trace.append("session closed")

    def post(self, client: Client, stream_id: str | None = None, **options: Any) -> Exchange:
        """POST to the endpoint, under a stream id."""
        headers = dict(options.pop("headers", {}))
        if stream_id is not None:
            headers[ID] = stream_id
        self._last = client.start("POST", self.path, headers=headers, **{"json": {"text": "hi"}} | options)
        return self._last

    async def begin(self, client: Client, stream_id: str | None, *values: str, **options: Any) -> tuple[Exchange, Run]:
        """POST, and let the new run yield its first values; returns with the head read."""
        number = len(self.runs)
        exchange = self.post(client, stream_id, **options)
        run = await self.run(number)
        run.put(*(values or ("zero",)))
        head = await exchange.head()
        assert head.status == 200, head
        return exchange, run


def make(**settings: Any) -> Resumable:
    """A `Resumable` for tests: leftovers are not waited for at shutdown."""
    return Resumable(**{"shutdown_grace": 0.1, "stop_grace": 10.0} | settings)


def stage(
    face: str,
    kind: str = "async generator",
    *,
    endpoint: str = "async def",
    gated: bool = False,
    resumable: Resumable | None = None,
    **settings: Any,
) -> Stage:
    """Build the app: the endpoint ``POST /chat`` of one kind under one face (``plain``: without the library)."""
    made = Stage(gated=gated)
    if face == "plain":
        _add(made, made.app, kind, endpoint, lambda function: function)
        return made
    resumable = made.resumable = resumable or make(**settings)
    made.app.include_router(resumable.router)
    match face:
        case "decorator":
            _add(made, made.app, kind, endpoint, resumable.stream)
        case "dependency":
            _add_with_dependency(made, kind, endpoint, resumable, lambda function: function)
        case "both":
            _add_with_dependency(made, kind, endpoint, resumable, resumable.stream)
        case "route_class":
            router = APIRouter(route_class=resumable.route_class)
            _add(made, router, kind, endpoint, lambda function: function)
            made.app.include_router(router)
        case "middleware":
            _add(made, made.app, kind, endpoint, lambda function: function)
            made.app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])
        case "mounted":
            made.path = "/sub/chat"
            made.inner = starlette_app(made, kind, endpoint)
            made.app.mount("/sub", made.inner)
            made.app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/sub/chat"])
        case _:
            raise AssertionError(face)
    return made


def app_under(
    face: str,
    endpoint: Any,
    resumable: Resumable | None = None,
    *,
    app: Any = None,
    path: str = "/chat",
    methods: tuple[str, ...] = ("POST",),
    **options: Any,
) -> Any:
    """An app, or the one given, with an endpoint that returns a response, under one face."""
    resumable = resumable or make()
    app = app or FastAPI()
    app.include_router(resumable.router)
    if face in ("dependency", "both"):
        endpoint = _through_its_handle(endpoint, resumable)
    if face in ("decorator", "both"):
        endpoint = resumable.stream(endpoint)
    router = APIRouter(route_class=resumable.route_class) if face == "route_class" else APIRouter()
    router.api_route(path, methods=list(methods), **options)(endpoint)
    app.include_router(router)
    if face in ("middleware", "mounted"):
        app.add_middleware(ResumableMiddleware, resumable=resumable, paths=[path])
    return app


def _through_its_handle(endpoint: Any, resumable: Resumable) -> Any:
    """The endpoint as it is with the dependency: one parameter more, which its response goes through."""
    handle = inspect.Parameter(
        "stream", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[ResumableStream, Depends(resumable)]
    )

    async def with_stream(*, stream: ResumableStream, **values: Any) -> Any:
        return stream(await endpoint(**values))

    own = inspect.signature(endpoint)
    with_stream.__signature__ = own.replace(parameters=[*own.parameters.values(), handle])  # type: ignore[attr-defined]
    return with_stream


def answer(run: Run, kind: str) -> Any:
    """The response of one kind."""
    match kind:
        case "async generator":
            return StreamingResponse(run.frames(sse), media_type="text/event-stream")
        case "sync generator":
            return StreamingResponse(run.frames_in_thread(sse), media_type="text/event-stream")
        case "sse-starlette":
            return SseStarletteResponse(run.frames(lambda value: {"data": value}))
        case "bytes":
            return StreamingResponse(run.frames(str.encode), media_type="application/octet-stream")
    raise AssertionError(kind)


def _add(made: Stage, router: Any, kind: str, endpoint: str, wrap: Callable[[Any], Any]) -> None:
    if kind.startswith("yield"):
        _add_yielding(made, router, kind, wrap)
        return

    def chat(
        prompt: Prompt,
        request: Request,
        session: Annotated[list[str], Depends(made.session)],
        background: BackgroundTasks,
    ) -> Any:
        """Answer a prompt."""
        background.add_task(made.trace.append, "background ran")
        return answer(made.new_run(request), kind)

    async def chat_async(
        prompt: Prompt,
        request: Request,
        session: Annotated[list[str], Depends(made.session)],
        background: BackgroundTasks,
    ) -> Any:
        """Answer a prompt."""
        background.add_task(made.trace.append, "background ran")
        run = made.new_run(request)
        await _admission(run)
        return answer(run, kind)

    router.post("/chat", name="chat")(wrap(_named(chat if endpoint == "def" else chat_async)))


def _add_with_dependency(
    made: Stage, kind: str, endpoint: str, resumable: Resumable, wrap: Callable[[Any], Any]
) -> None:
    def chat(
        prompt: Prompt,
        request: Request,
        session: Annotated[list[str], Depends(made.session)],
        background: BackgroundTasks,
        stream: Annotated[ResumableStream, Depends(resumable)],
    ) -> Any:
        """Answer a prompt."""
        background.add_task(made.trace.append, "background ran")
        return stream(answer(made.new_run(request, stream), kind))

    async def chat_async(
        prompt: Prompt,
        request: Request,
        session: Annotated[list[str], Depends(made.session)],
        background: BackgroundTasks,
        stream: Annotated[ResumableStream, Depends(resumable)],
    ) -> Any:
        """Answer a prompt."""
        background.add_task(made.trace.append, "background ran")
        run = made.new_run(request, stream)
        await _admission(run)
        return stream(answer(run, kind))

    made.app.post("/chat", name="chat")(wrap(_named(chat if endpoint == "def" else chat_async)))


def _add_yielding(made: Stage, router: Any, kind: str, wrap: Callable[[Any], Any]) -> None:
    async def chat(
        prompt: Prompt, request: Request, session: Annotated[list[str], Depends(made.session)]
    ) -> AsyncIterator[str]:
        """Answer a prompt."""
        run = made.new_run(request)
        await _admission(run)
        encode = (lambda value: value.encode()) if kind == "yield raw" else (lambda value: value)
        async with aclosing(run.frames(encode)) as frames:
            async for frame in frames:
                yield frame

    def chat_in_def(
        prompt: Prompt, request: Request, session: Annotated[list[str], Depends(made.session)]
    ) -> Iterator[str]:
        """Answer a prompt."""
        yield from made.new_run(request).frames_in_thread(lambda value: value)

    match kind:
        case "yield sse":
            router.post("/chat", response_class=NativeEventSource)(wrap(chat))
        case "yield sse in def":
            router.post("/chat", response_class=NativeEventSource)(wrap(_named(chat_in_def)))
        case "yield json lines":
            router.post("/chat")(wrap(chat))
        case "yield raw":
            router.post("/chat", response_class=StreamingResponse)(wrap(chat))
        case _:
            raise AssertionError(kind)


def starlette_app(made: Stage, kind: str, endpoint: str = "async def") -> Starlette:
    """The endpoint in an app that is not FastAPI's."""

    async def chat_async(request: Request) -> Any:
        await request.body()
        run = made.new_run(request)
        await _admission(run)
        return answer(run, kind)

    def chat(request: Request) -> Any:
        return answer(made.new_run(request), kind)

    return Starlette(routes=[Route("/chat", chat if endpoint == "def" else chat_async, methods=["POST"])])


async def _admission(run: Run) -> None:
    """Wait until the test admits the run; tell if the wait was cancelled."""
    try:
        await run.admitted.wait()
    except BaseException as error:
        run.endings.append(f"{type(error).__name__} while queued")
        raise


def _named(function: Any) -> Any:
    function.__name__ = function.__qualname__ = "chat"
    return function


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


def memory_store(clock: Clock, **options: Any) -> MemoryStore:
    """A memory store whose time the test moves."""
    assert "clock" in inspect.signature(MemoryStore).parameters
    return MemoryStore(clock=clock, **options)
