"""What is done with every request before its route."""

from typing import Dict, List

from fastapi import FastAPI
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send


class Methods:
    """Answers HEAD like GET, and OPTIONS; a path with a slash at its end is the one without."""

    def __init__(self, app: ASGIApp, allowed: Dict[str, List[str]]) -> None:
        """Wrap an app; `allowed` has the methods of its paths."""
        self.app, self._allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path, method = scope["path"], scope["method"]
            if path not in self._allowed and path.rstrip("/") in self._allowed:
                path = scope["path"] = path.rstrip("/")
            if method == "HEAD":
                scope = {**scope, "method": "GET"}  # the server sends no body: its own scope keeps HEAD
            elif method == "OPTIONS" and path in self._allowed:
                answer = Response(status_code=204, headers={"Allow": ", ".join(self._allowed[path])})
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)


def allowed_methods(app: FastAPI) -> Dict[str, List[str]]:
    """Return the methods of each path of an app, with those that `Methods` adds."""
    allowed: Dict[str, List[str]] = {}
    for route in app.routes:
        if isinstance(route, Route):
            methods = {*(route.methods or ()), "OPTIONS"}
            allowed[route.path] = sorted(methods | {"HEAD"} if "GET" in methods else methods)
    return allowed
