"""The JavaScript client, served beside the routes that it uses.

`resumable.js` leads to `resumable.<hash>.js`, which browsers keep for good. The module knows by the hash in its URL
that it was served here, and takes the URL's folder for the prefix of the routes.
"""

import hashlib
from functools import cache
from importlib import resources

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse


def add_assets(router: APIRouter) -> None:
    """Serve the client under the router's prefix, to everybody: a script tag sends no credentials of the page's own."""
    router.add_route(f"{router.prefix}/resumable.js", _lead_to_module, include_in_schema=False)
    router.add_route(f"{router.prefix}/resumable.{{digest}}.js", _send_module, include_in_schema=False)


@cache
def _module() -> tuple[bytes, str]:
    """The module and the hash of it."""
    content = resources.files("fastapi_resumable").joinpath("static", "resumable.js").read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:16]


async def _lead_to_module(_request: Request) -> Response:
    _, digest = _module()
    # Relative to the URL that was asked for, so right under every prefix, mount and root path.
    return RedirectResponse(f"resumable.{digest}.js", headers={"Cache-Control": "no-cache"})


async def _send_module(request: Request) -> Response:
    content, digest = _module()
    # Another hash is another version's, during a deployment: ours will do, but is not to be kept under that name.
    is_ours = request.path_params["digest"] == digest
    caching = "public, max-age=31536000, immutable" if is_ours else "no-cache"
    return Response(content, media_type="text/javascript", headers={"Cache-Control": caching})
