"""The scripted application between two GZip middlewares: one that the recorder sees, and one that it does not.

`inside` records what a compressing application sends; `outside` records first and compresses on the way out.
"""

from fastapi.middleware.gzip import GZipMiddleware

from fastapi_resumable import ResumableMiddleware
from tests.support.apps.scripted import create_app

inside, _resumable = create_app(decorated=False)
inside.add_middleware(GZipMiddleware, minimum_size=1)
inside.add_middleware(ResumableMiddleware, resumable=_resumable, paths=["/script"])

outside, _ = create_app()
outside.add_middleware(GZipMiddleware, minimum_size=1)
