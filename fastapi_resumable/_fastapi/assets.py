"""The JavaScript client, served beside the routes that it uses.

`resumable.js` leads to `resumable.<hash>.js`, which browsers keep for good. The module knows by the hash in its URL
that it was served here, and takes the URL's folder for the prefix of the routes. `ag-ui.js` imports it from there.
"""

import hashlib
from collections.abc import Awaitable, Callable
from functools import cache
from importlib import resources

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

NAMES = ("resumable.js", "ag-ui.js")


def add_assets(router: APIRouter) -> None:
    """Serve the client under the router's prefix, without authentication: a script tag sends no headers of the page."""
    for name in NAMES:
        stem = name.removesuffix(".js")
        router.add_route(f"{router.prefix}/{name}", _lead_to_module(name), include_in_schema=False)
        router.add_route(f"{router.prefix}/{stem}.{{digest}}.js", _send_module(name), include_in_schema=False)
        router.add_route(f"{router.prefix}/{name}.map", _send_source_map(name), include_in_schema=False)


@cache
def _read(name: str) -> bytes:
    return resources.files("fastapi_resumable").joinpath("static", name).read_bytes()


@cache
def _digest(name: str) -> str:
    # Of the content rather than the version, so that an application that runs from a checkout gets each change.
    return hashlib.sha256(_read(name)).hexdigest()[:16]


def _lead_to_module(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def lead(_request: Request) -> Response:
        # Relative to the URL that was asked for, so right under every prefix, mount and root path.
        url = f"{name.removesuffix('.js')}.{_digest(name)}.js"
        return RedirectResponse(url, headers={"Cache-Control": "no-cache"})

    return lead


def _send_module(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        # Another hash is another version's, during a deployment: ours will do, but is not to be kept under that name.
        is_ours = request.path_params["digest"] == _digest(name)
        caching = "public, max-age=31536000, immutable" if is_ours else "no-cache"
        return Response(_read(name), media_type="text/javascript", headers={"Cache-Control": caching})

    return send


def _send_source_map(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def send(_request: Request) -> Response:
        return Response(_read(f"{name}.map"), media_type="application/json", headers={"Cache-Control": "no-cache"})

    return send
