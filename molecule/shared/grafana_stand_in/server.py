"""The HTTP side: health, login, the read-only part of Grafana's API, and the datasource proxy."""

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

from . import NOTICE, VERSION, ConfigurationError, log
from .accounts import Accounts
from .provisioning import Json, Provisioned, check_dashboard, read_provisioning
from .settings import read_text

Answer = Tuple[int, bytes, str]


def as_json(status: int, content: Any) -> Answer:
    return status, json.dumps(content, indent=2).encode(), "application/json"


def as_text(status: int, content: str) -> Answer:
    return status, content.encode(), "text/plain; charset=utf-8"


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, settings: dict[str, str]) -> None:
        self.settings = settings
        self.provisioning = Path(settings["paths.provisioning"])
        self.read = read_provisioning(self.provisioning)
        if settings["auth.anonymous.enabled"] == "true":
            raise ConfigurationError("[auth.anonymous] enabled: the stand-in has no anonymous access.")
        self.accounts = Accounts(
            settings["paths.data"],
            settings["security.admin_user"],
            settings["security.admin_password"],
            settings["security.disable_brute_force_login_protection"] != "true",
        )
        self.sessions: dict[str, str] = {}
        home = settings.get("dashboards.default_home_dashboard_path")
        if home:
            check_dashboard(json.loads(read_text(Path(home), "[dashboards] default_home_dashboard_path:")), Path(home))
        if ":" in settings["server.http_addr"]:
            self.address_family = socket.AF_INET6
        super().__init__((settings["server.http_addr"], int(settings["server.http_port"])), Handler)

    def provisioned(self) -> Provisioned:
        """What is provisioned now: like Grafana, files that change are read again, and a broken one is only logged."""
        try:
            self.read = self.read._replace(**read_provisioning(self.provisioning)._asdict())
        except ConfigurationError as error:
            log.error("%s", error)
        return self.read

    def query(self, source: Json, path: str, body: bytes | None, content_type: str) -> Answer:
        """Pass a request on to the real Prometheus; its own answer comes back, whatever its status."""
        request = urllib.request.Request(source["url"].rstrip("/") + "/" + path, data=body)  # noqa: S310 - checked: http(s)
        if body is not None:
            request.add_header("Content-Type", content_type)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                return answer.status, answer.read(), answer.headers.get("Content-Type", "")
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers.get("Content-Type", "")
        except OSError as error:
            return as_json(502, {"message": f"Prometheus at {source['url']} does not answer: {error}"})


class Handler(BaseHTTPRequestHandler):
    server: Server
    server_version = "GrafanaStandIn"
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        self.respond(None)

    def do_POST(self) -> None:
        self.respond(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the base class
        if self.server.settings.get("server.router_logging") == "true":
            log.info(format, *args)

    def user(self) -> str | None:
        """The login of who asks, by session cookie or basic auth; None for a stranger."""
        cookie = http.cookies.SimpleCookie(self.headers.get("Cookie", ""))
        session = cookie.get(self.server.settings["auth.login_cookie_name"])
        if session and session.value in self.server.sessions:
            return self.server.sessions[session.value]
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "basic" or self.server.settings["auth.basic.enabled"] != "true":
            return None
        try:
            login, _, password = base64.b64decode(token).decode().partition(":")
        except ValueError:
            return None
        return login if self.server.accounts.check(login, password) else None

    def respond(self, body: bytes | None) -> None:
        self.extra: dict[str, str] = {}
        try:
            status, content, kind = self.answer(urllib.parse.urlsplit(self.path), body)
        except ConfigurationError as error:
            status, content, kind = as_json(500, {"message": str(error)})
        self.send_response(status)
        for name, value in self.extra.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def answer(self, url: urllib.parse.SplitResult, body: bytes | None) -> Answer:  # noqa: PLR0911 - one per route
        path = url.path.rstrip("/") or "/"
        if path == "/api/health":
            return as_json(200, {"database": "ok", "version": VERSION, "commit": "stand-in"})
        if path == "/login":
            return self.log_in(body) if body is not None else as_text(200, NOTICE)
        user = self.user()
        if user is None:
            if path.startswith("/api/"):
                return as_json(401, {"message": "Unauthorized", "statusCode": 401})
            self.extra["Location"] = "/login"
            return as_text(302, NOTICE)
        if path.startswith("/api/datasources"):
            return self.datasources(path, url.query, body)
        read = self.server.provisioned()
        query = urllib.parse.parse_qs(url.query)
        if path == "/":
            return as_text(200, NOTICE)
        shown = re.fullmatch(r"/api/dashboards/uid/([\w-]+)", path)
        if shown and shown.group(1) in read.dashboards:
            uid = shown.group(1)
            meta = {"provisioned": True, "canSave": False, "folderTitle": read.folders[uid], "url": f"/d/{uid}"}
            return as_json(200, {"meta": meta, "dashboard": read.dashboards[uid]})
        if path == "/api/org":
            return as_json(200, {"id": 1, "name": "Main Org."})
        if path == "/api/user":
            return as_json(200, {"id": 1, "login": user, "isGrafanaAdmin": True, "orgId": 1})
        if path == "/api/search":
            wanted = query.get("query", [""])[0].lower()
            matching = [board for board in read.dashboards.values() if wanted in board["title"].lower()]
            return as_json(200, [self.found(board, read.folders[board["uid"]]) for board in matching])
        return as_json(404, {"message": "Not found in this stand-in for Grafana"})

    @staticmethod
    def found(board: Json, folder: str) -> Json:
        head = {key: board.get(key) for key in ("uid", "title", "tags")}
        return {**head, "type": "dash-db", "url": f"/d/{board['uid']}", "folderTitle": folder}

    def log_in(self, body: bytes) -> Answer:
        form = "form" in self.headers.get("Content-Type", "")
        try:
            fields = dict(urllib.parse.parse_qsl(body.decode())) if form else json.loads(body)
            user, password = fields["user"], fields["password"]
        except (ValueError, KeyError, TypeError):
            return as_json(400, {"message": "bad login data"})
        if not self.server.accounts.check(user, password):
            return as_json(401, {"message": "Invalid username or password", "statusCode": 401})
        token = secrets.token_hex(16)
        self.server.sessions[token] = user
        cookie = self.server.settings["auth.login_cookie_name"]
        self.extra["Set-Cookie"] = f"{cookie}={token}; Path=/; HttpOnly; SameSite=Lax"
        if form:
            self.extra["Location"] = "/"
            return as_text(302, NOTICE)
        return as_json(200, {"message": "Logged in", "redirectUrl": "/"})

    def datasources(self, path: str, query: str, body: bytes | None) -> Answer:
        usual = {"orgId": 1, "access": "proxy", "readOnly": True, "isDefault": False, "jsonData": {}}
        public = [
            {"id": number, **usual, **source} for number, source in enumerate(self.server.provisioned().datasources, 1)
        ]
        for source in public:
            source.pop("secureJsonData", None)
        if path == "/api/datasources":
            return as_json(200, public)
        by_uid = {source["uid"]: source for source in public}
        by_name = {source["name"]: source for source in public}
        proxy = re.fullmatch(r"/api/datasources/(?:proxy/uid/([\w-]+)|uid/([\w-]+)/resources)/(api/v1/.+)", path)
        if proxy and (proxy.group(1) or proxy.group(2)) in by_uid:
            target = proxy.group(3) + (f"?{query}" if query else "")
            kind = self.headers.get("Content-Type", "application/x-www-form-urlencoded")
            return self.server.query(by_uid[proxy.group(1) or proxy.group(2)], target, body, kind)
        one = re.fullmatch(r"/api/datasources/(uid|name)/([^/]+)(/health)?", path)
        found = (by_uid if one.group(1) == "uid" else by_name).get(urllib.parse.unquote(one.group(2))) if one else None
        if not one or not found:
            return as_json(404, {"message": "Data source not found"})
        if not one.group(3):
            return as_json(200, found)
        status, content, _ = self.server.query(found, "api/v1/query?query=1%2B1", None, "")
        if status == 200:
            return as_json(200, {"status": "OK", "message": "Successfully queried the Prometheus API."})
        return as_json(400, {"status": "ERROR", "message": content.decode(errors="replace")})
