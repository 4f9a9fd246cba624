"""The key of Grafana's repository that the role ships, by RFC 4880."""

import base64
import hashlib
from pathlib import Path

KEY = Path(__file__).parents[3] / "roles" / "grafana" / "files" / "grafana.asc"
FINGERPRINT = "B53AE77BADB630A683046005963FA27710458545"  # as in roles/grafana/README.md


def test_the_key_is_the_one_that_grafana_publishes() -> None:
    lines = KEY.read_text().split("\n\n", 1)[1].splitlines()
    packets = base64.b64decode("".join(line for line in lines if line and line[0] not in "=-"))
    assert packets[0] == 0x99, "a public key, whose length has two bytes"
    length = int.from_bytes(packets[1:3], "big")
    assert hashlib.sha1(packets[: 3 + length]).hexdigest().upper() == FINGERPRINT  # noqa: S324 - the format's own
    assert KEY.read_text().count("BEGIN PGP PUBLIC KEY BLOCK") == 1
