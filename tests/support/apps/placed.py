"""Where the routes may be put: under a prefix of the router, of an outer router, of a mount, or several of these."""

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import StreamingResponse

from fastapi_resumable import Resumable


def endpoint(resumable: Resumable) -> APIRouter:
    """A router with one resumable endpoint, `POST /chat`."""
    router = APIRouter()

    @router.post("/chat")
    @resumable.stream
    async def chat() -> Response:
        return StreamingResponse(iter([b"data: one\n\n", b"data: two\n\n"]), media_type="text/event-stream")

    return router


def plain() -> FastAPI:
    """The router as it comes; the endpoint at `/chat`."""
    resumable, app = Resumable(), FastAPI()
    app.include_router(resumable.router)
    app.include_router(endpoint(resumable))
    return app


def own_prefix() -> FastAPI:
    """`Resumable(prefix=...)`."""
    resumable, app = Resumable(prefix="/streams/of"), FastAPI()
    app.include_router(resumable.router)
    app.include_router(endpoint(resumable))
    return app


def prefixed() -> FastAPI:
    """`include_router(prefix=...)` for the routes, another for the endpoint."""
    resumable, app = Resumable(), FastAPI()
    app.include_router(resumable.router, prefix="/api")
    app.include_router(endpoint(resumable), prefix="/deep/er")
    return app


def of_tenants() -> FastAPI:
    """A prefix with a parameter, for the routes and for an endpoint that has one more."""
    resumable, app = Resumable(), FastAPI()
    app.include_router(resumable.router, prefix="/t/{tenant}")
    app.include_router(endpoint(resumable), prefix="/t/{tenant}/{number:int}")
    return app


def nested() -> FastAPI:
    """A router that includes the router, and is itself included with a prefix."""
    resumable, app, outer = Resumable(), FastAPI(), APIRouter(prefix="/outer")
    outer.include_router(resumable.router, prefix="/inner")
    outer.include_router(endpoint(resumable))
    app.include_router(outer)
    return app


def mounted() -> FastAPI:
    """All of it in an application that is mounted."""
    app = FastAPI()
    app.mount("/sub", prefixed())
    return app


def twice_mounted() -> FastAPI:
    """Mounted, and that mounted again."""
    app = FastAPI()
    app.mount("/top", mounted())
    return app


def endpoint_mounted() -> FastAPI:
    """The routes outside, the endpoint in an application that is mounted."""
    resumable, app, sub = Resumable(), FastAPI(), FastAPI()
    app.include_router(resumable.router, prefix="/api")
    sub.include_router(endpoint(resumable))
    app.mount("/sub", sub)
    return app


def told_root_path() -> FastAPI:
    """An application that knows where its proxy has put it."""
    resumable, app = Resumable(), FastAPI(root_path="/proxied")
    app.include_router(resumable.router, prefix="/api")
    app.include_router(endpoint(resumable))
    return app


def guarded() -> FastAPI:
    """`include_router(dependencies=[...])`: every one of our routes asks for a token."""
    from typing import Annotated

    from fastapi import Depends, Header, HTTPException

    def token(authorization: Annotated[str | None, Header()] = None) -> None:
        if authorization != "Bearer secret":
            raise HTTPException(401, "no token", {"WWW-Authenticate": "Bearer"})

    resumable, app = Resumable(), FastAPI()
    app.include_router(resumable.router, dependencies=[Depends(token)])
    app.include_router(endpoint(resumable))
    return app
