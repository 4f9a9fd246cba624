"""The HTTP side: health, login, search, dashboards, datasources and their proxy to the real Prometheus."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import sqlite3
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Iterator, Tuple

from . import NOTICE, VERSION
from .configuration import Json, read_dashboard, read_provisioning

ATTEMPTS, WINDOW = 5, 300  # Grafana's brute-force protection: so many failures in so many seconds
Answer = Tuple[int, Any]  # status, and what becomes JSON; bytes are JSON already


def digest(password: str, salt: str) -> str:
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt.encode(), 10000).hex()


class Database:
    """SQLite, as in Grafana: the administrator's password, and the dashboards that were made by hand."""

    def __init__(self, settings: dict[str, str]) -> None:
        self.path = Path(settings["paths.data"], "grafana.db")
        self.login = settings["security.admin_user"]
        self.failures: list[float] = []
        is_new = not self.path.exists()
        with self.open() as database:
            database.execute("CREATE TABLE IF NOT EXISTS user (login TEXT PRIMARY KEY, salt TEXT, digest TEXT)")
            database.execute("CREATE TABLE IF NOT EXISTS dashboard (uid TEXT PRIMARY KEY, data TEXT)")
        self.path.chmod(0o640)
        if is_new:  # as in Grafana, the password of the ini counts only at the first start
            self.set_password(settings["security.admin_password"])

    @contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(str(self.path), timeout=30)) as database, database:
            yield database

    def set_password(self, password: str) -> None:
        salt = secrets.token_hex(8)
        with self.open() as database:
            database.execute("REPLACE INTO user VALUES (?, ?, ?)", (self.login, salt, digest(password, salt)))

    def check(self, login: str, password: str) -> bool:
        self.failures = [at for at in self.failures if at > time.monotonic() - WINDOW]
        with self.open() as database:
            known = database.execute("SELECT salt, digest FROM user WHERE login = ?", (login,)).fetchone()
        good = known is not None and hmac.compare_digest(digest(password, known[0]), known[1])
        good = good and len(self.failures) < ATTEMPTS
        self.failures = [] if good else [*self.failures, time.monotonic()]
        return good

    def save(self, board: Json) -> None:
        with self.open() as database:
            database.execute("REPLACE INTO dashboard VALUES (?, ?)", (board["uid"], json.dumps(board)))

    def boards(self) -> dict[str, Json]:
        with self.open() as database:
            return {uid: json.loads(data) for uid, data in database.execute("SELECT uid, data FROM dashboard")}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, settings: dict[str, str]) -> None:
        self.provisioning = Path(settings["paths.provisioning"])
        read_provisioning(self.provisioning)
        self.database = Database(settings)
        if "dashboards.default_home_dashboard_path" in settings:
            read_dashboard(Path(settings["dashboards.default_home_dashboard_path"]))
        super().__init__((settings["server.http_addr"], int(settings["server.http_port"])), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.respond(None)

    def do_POST(self) -> None:
        self.respond(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def respond(self, body: bytes | None) -> None:
        status, content = self.answer(urllib.parse.urlsplit(self.path), body)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer(self, url: urllib.parse.SplitResult, body: bytes | None) -> Answer:  # noqa: PLR0911 - one per route
        if url.path == "/api/health":
            return 200, {"database": "ok", "version": VERSION}
        if url.path == "/login" and body is not None:
            fields = json.loads(body)
            good = self.server.database.check(fields["user"], fields["password"])
            return (200, {"message": "Logged in"}) if good else (401, {"message": "Invalid username or password"})
        if not url.path.startswith("/api/"):
            return 200, {"message": NOTICE}
        if not self.is_known():
            return 401, {"message": "Unauthorized"}
        sources, boards = read_provisioning(self.server.provisioning)  # like Grafana, follow changed files
        if url.path == "/api/org":
            return 200, {"id": 1, "name": "Main Org."}
        own = self.server.database.boards()
        if url.path == "/api/search":
            return 200, [{"uid": uid, "title": board["title"]} for uid, board in {**own, **boards}.items()]
        if url.path == "/api/dashboards/db" and body is not None:
            board = json.loads(body)["dashboard"]
            self.server.database.save(board)
            return 200, {"uid": board["uid"], "status": "success"}
        if url.path == "/api/datasources":
            return 200, list(sources.values())
        found = re.fullmatch(r"/api/(dashboards|datasources(?:/proxy)?)/uid/([\w-]+)(?:/(api/v1/.+))?", url.path)
        kind, uid, path = found.groups() if found else ("", "", None)
        if kind == "dashboards" and uid in boards:
            return 200, {"meta": {"provisioned": True}, "dashboard": boards[uid]}
        if kind == "dashboards" and uid in own:
            return 200, {"meta": {"provisioned": False}, "dashboard": own[uid]}
        if kind == "datasources" and uid in sources:
            return 200, sources[uid]
        if kind == "datasources/proxy" and uid in sources and path:
            return query(sources[uid], f"{path}?{url.query}", body)
        return 404, {"message": "Not found in this stand-in for Grafana"}

    def is_known(self) -> bool:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        login, _, password = base64.b64decode(token).decode().partition(":")
        return kind == "Basic" and self.server.database.check(login, password)


def query(source: Json, path: str, body: bytes | None) -> Answer:
    """Pass a request on to the real Prometheus, and its answer back, whatever its status."""
    request = urllib.request.Request(f"{source['url'].rstrip('/')}/{path}", data=body)  # noqa: S310 - checked: http(s)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError as error:
        return 502, {"message": f"Prometheus at {source['url']} does not answer: {error}"}
