"""The admin account, in SQLite where Grafana has its own database.

It has the same life as Grafana's: the ini's password counts at the first start only; afterwards
grafana-cli changes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import sqlite3
import time
from pathlib import Path
from typing import Iterator

from . import ConfigurationError

ATTEMPTS, WINDOW = 5, 300  # Grafana's brute-force protection: so many failures in so many seconds


def digest(password: str, salt: str) -> str:
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt.encode(), 10000).hex()


class Accounts:
    def __init__(self, data: str, login: str, first_password: str, protected: bool = True) -> None:
        self.path = Path(data, "grafana.db")
        self.login = login
        self.protected = protected
        self.failures: dict[str, list[float]] = {}
        with self.connect() as database:
            database.execute("CREATE TABLE IF NOT EXISTS user (login TEXT PRIMARY KEY, salt TEXT, password TEXT)")
            known = database.execute("SELECT login FROM user").fetchone()
            self.first_start = known is None
            if known is None:
                self._store(database, login, first_password)
            else:
                self.login = known[0]  # as in Grafana, a later change of admin_user in the ini has no effect
        if self.first_start:
            self.path.chmod(0o640)

    @contextlib.contextmanager
    def connect(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(sqlite3.connect(str(self.path), timeout=10)) as database, database:
                yield database
        except sqlite3.Error as error:
            raise ConfigurationError(
                f"The database {self.path} cannot be used by uid {os.getuid()}: {error}."
            ) from error

    @staticmethod
    def _store(database: sqlite3.Connection, login: str, password: str) -> None:
        salt = secrets.token_hex(8)
        database.execute("REPLACE INTO user VALUES (?, ?, ?)", (login, salt, digest(password, salt)))

    def set_password(self, password: str) -> None:
        if len(password) < 4:
            raise ConfigurationError("The new password is too short: at least 4 characters.")
        with self.connect() as database:
            self._store(database, self.login, password)

    def check(self, login: str, password: str) -> bool:
        recent = [at for at in self.failures.get(login, []) if at > time.monotonic() - WINDOW]
        if self.protected and len(recent) >= ATTEMPTS:
            return False
        with self.connect() as database:
            row = database.execute("SELECT salt, password FROM user WHERE login = ?", (login,)).fetchone()
        good = row is not None and hmac.compare_digest(digest(password, row[0]), row[1])
        self.failures[login] = [] if good else [*recent, time.monotonic()]
        return good
