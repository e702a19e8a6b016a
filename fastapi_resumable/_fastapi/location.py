"""Where the replay route is: under whatever prefix, mount and root path the router was included."""

import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from starlette.routing import NoMatchFound
from starlette.types import Scope

from .._run.headers import replay_path

logger = logging.getLogger("fastapi_resumable")


class Locator:
    """Finds the replay route by name."""

    def __init__(self, route_name: str) -> None:
        self.route_name = route_name
        self._warned = False
        # Where the route is in an application: it stays there, and looking for it takes long. By identity, as routers
        # have no hash; the application is kept with it, so that no other gets its identity.
        self._paths: dict[int, tuple[Any, str]] = {}

    def within(self, scope: Scope) -> Callable[[str], str | None]:
        """A function from a stream id to the path of its replay, as the client of this request has to ask for it."""
        base = self._base(scope)
        return lambda stream_id: None if base is None else replay_path(base, stream_id)

    def _base(self, scope: Scope) -> str | None:
        root_path = scope.get("root_path", "")
        # The router is in the application that serves the request, or in one that this one is mounted in.
        for provider, root in (
            (scope.get("app"), root_path),
            (scope.get("router"), scope.get("app_root_path", root_path)),
        ):
            if provider is not None:
                if id(provider) not in self._paths:
                    try:
                        self._paths[id(provider)] = provider, str(provider.url_path_for(self.route_name))
                    except NoMatchFound:
                        continue
                path = self._paths[id(provider)][1]
                return quote(root.rstrip("/") + path, safe="/:@!$&'()*+,;=~%")
        if not self._warned:
            self._warned = True
            logger.warning("streams cannot be replayed: add app.include_router(resumable.router) to the application")
        return None
