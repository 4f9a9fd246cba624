"""The HTTP side: health, login, search, dashboards, datasources and their proxy to the real Prometheus."""

from __future__ import annotations

import base64
import http.cookies
import json
import re
import secrets
import socket
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Tuple

from . import NOTICE, VERSION, ConfigurationError
from .accounts import Accounts
from .provisioning import Json, Provisioned, check_dashboard, read_provisioning
from .settings import read_text

Answer = Tuple[int, Any]  # status, and what becomes JSON; bytes are JSON already


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, settings: dict[str, str]) -> None:
        self.provisioning = Path(settings["paths.provisioning"])
        self.read = read_provisioning(self.provisioning)
        if settings["auth.anonymous.enabled"] == "true":
            raise ConfigurationError("[auth.anonymous] enabled: the stand-in has no anonymous access.")
        self.accounts = Accounts(
            settings["paths.data"], settings["security.admin_user"], settings["security.admin_password"]
        )
        self.sessions: set[str] = set()
        home = settings.get("dashboards.default_home_dashboard_path")
        if home:
            check_dashboard(json.loads(read_text(Path(home), "[dashboards] default_home_dashboard_path:")), Path(home))
        address = settings["server.http_addr"]
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, int(settings["server.http_port"])), Handler)

    def provisioned(self) -> Provisioned:
        """Like Grafana, read changed files again, and only log what is wrong with them."""
        try:
            self.read = read_provisioning(self.provisioning)
        except ConfigurationError as error:
            print(error, flush=True)  # noqa: T201 - the journal
        return self.read


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        self.respond(None)

    def do_POST(self) -> None:
        self.respond(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the base class
        pass

    def respond(self, body: bytes | None) -> None:
        self.cookie = ""
        status, content = self.answer(urllib.parse.urlsplit(self.path), body)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if self.cookie:
            self.send_header("Set-Cookie", f"grafana_session={self.cookie}; Path=/; HttpOnly")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer(self, url: urllib.parse.SplitResult, body: bytes | None) -> Answer:
        if url.path == "/api/health":
            return 200, {"database": "ok", "version": VERSION}
        if url.path == "/login" and body is not None:
            return self.log_in(json.loads(body))
        if not url.path.startswith("/api/"):
            return 200, {"message": NOTICE}
        if not self.is_known():
            return 401, {"message": "Unauthorized"}
        read = self.server.provisioned()
        if url.path == "/api/org":
            return 200, {"id": 1, "name": "Main Org."}
        if url.path == "/api/search":
            return 200, [{"uid": uid, "title": board["title"]} for uid, board in read.dashboards.items()]
        if url.path == "/api/datasources":
            return 200, read.datasources
        sources = {source["uid"]: source for source in read.datasources}
        found = re.fullmatch(r"/api/(dashboards|datasources|datasources/proxy)/uid/([\w-]+)(?:/(api/v1/.+))?", url.path)
        kind, uid, path = found.groups() if found else ("", "", None)
        if kind == "dashboards" and uid in read.dashboards:
            return 200, {"meta": {"provisioned": True}, "dashboard": read.dashboards[uid]}
        if kind == "datasources" and uid in sources:
            return 200, sources[uid]
        if kind == "datasources/proxy" and uid in sources and path:
            return self.query(sources[uid], f"{path}?{url.query}", body)
        return 404, {"message": "Not found in this stand-in for Grafana"}

    def is_known(self) -> bool:
        cookie = http.cookies.SimpleCookie(self.headers.get("Cookie", "")).get("grafana_session")
        if cookie and cookie.value in self.server.sessions:
            return True
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        login, _, password = base64.b64decode(token).decode().partition(":")
        return kind == "Basic" and self.server.accounts.check(login, password)

    def log_in(self, fields: Json) -> Answer:
        if not self.server.accounts.check(fields["user"], fields["password"]):
            return 401, {"message": "Invalid username or password"}
        self.cookie = secrets.token_hex(16)
        self.server.sessions.add(self.cookie)
        return 200, {"message": "Logged in"}

    def query(self, source: Json, path: str, body: bytes | None) -> Answer:
        """Pass a request on to the real Prometheus, and its answer back, whatever its status."""
        request = urllib.request.Request(f"{source['url'].rstrip('/')}/{path}", data=body)  # noqa: S310 - http(s), checked
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError as error:
            return 502, {"message": f"Prometheus at {source['url']} does not answer: {error}"}
