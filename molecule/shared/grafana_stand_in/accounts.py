"""The admin account, in a file that takes the place of Grafana's database.

As in Grafana, the password of the ini file counts only at the first start; later, grafana-cli changes it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from pathlib import Path

from . import ConfigurationError

ATTEMPTS, WINDOW = 5, 300  # Grafana's brute-force protection: so many failures in so many seconds


def digest(password: str, salt: str) -> str:
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt.encode(), 10000).hex()


class Accounts:
    def __init__(self, data: str, login: str, first_password: str) -> None:
        self.path = Path(data, "grafana.db")
        self.failures: dict[str, list[float]] = {}
        if self.path.exists():
            self.login = str(json.loads(self.path.read_text())["login"])  # a later change in the ini has no effect
        else:
            self.login = login
            self.set_password(first_password)

    def set_password(self, password: str) -> None:
        if len(password) < 4:
            raise ConfigurationError("The new password is too short: at least 4 characters.")
        salt = secrets.token_hex(8)
        new = self.path.with_name("grafana.db.new")
        new.write_text(json.dumps({"login": self.login, "salt": salt, "password": digest(password, salt)}))
        new.chmod(0o640)
        new.replace(self.path)

    def check(self, login: str, password: str) -> bool:
        recent = [at for at in self.failures.get(login, []) if at > time.monotonic() - WINDOW]
        if len(recent) >= ATTEMPTS:
            return False
        known = json.loads(self.path.read_text())
        good = login == known["login"] and hmac.compare_digest(digest(password, known["salt"]), known["password"])
        self.failures[login] = [] if good else [*recent, time.monotonic()]
        return good
