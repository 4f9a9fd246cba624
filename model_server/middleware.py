"""What is done with every request before its route."""

from typing import Dict, List

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from model_server.networks import Networks

INTERNAL_PAGES = frozenset({"/metrics", "/healthz", "/readyz", "/docs", "/redoc", "/openapi.json"})
ALIASES = {"/v2/health/live": "/healthz", "/v2/health/ready": "/readyz"}  # of the Open Inference Protocol
LOOPBACK = Networks("127.0.0.0/8,::1", "internal_pages_from")


class InternalPages:
    """Answers 403 to all but some and the host itself who ask for a page that is not for clients."""

    def __init__(self, app: ASGIApp, networks: Networks) -> None:
        """Wrap an app; `networks` may see all of its pages."""
        self.app, self._networks = app, networks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in INTERNAL_PAGES:
            client = (scope.get("client") or ("",))[0]
            if client not in self._networks and client not in LOOPBACK:
                await JSONResponse({"detail": "This page is not for your address."}, 403)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class Methods:
    """Answers HEAD like GET, and OPTIONS; a path with a slash at its end is the one without."""

    def __init__(self, app: ASGIApp, allowed: Dict[str, List[str]]) -> None:
        """Wrap an app; `allowed` has the methods of its paths."""
        self.app, self._allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            path, method = ALIASES.get(path, path), scope["method"]
            if path not in self._allowed and path.rstrip("/") in self._allowed:
                path = path.rstrip("/")
            scope["path"] = path
            if method == "HEAD":
                scope = {**scope, "method": "GET"}  # the server sends no body: its own scope keeps HEAD
            elif method == "OPTIONS" and path in self._allowed:
                answer = Response(status_code=204, headers={"Allow": ", ".join(self._allowed[path])})
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)


class WithoutRanges:
    """Sends files whole: starlette before 0.49.1, which Python 3.8 has, needs seconds to merge many ranges."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an app."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [header for header in scope["headers"] if header[0] != b"range"]
        await self.app({**scope, "headers": headers}, receive, send)


def allowed_methods(app: FastAPI) -> Dict[str, List[str]]:
    """Return the methods of each path of an app, with those that `Methods` adds."""
    allowed: Dict[str, List[str]] = {}
    for route in app.routes:
        if isinstance(route, Route):
            methods = {*(route.methods or ()), "OPTIONS"}
            allowed[route.path] = sorted(methods | {"HEAD"} if "GET" in methods else methods)
    return allowed
