"""The keys that /predict asks for. A client sends `NAME.SECRET`; the server knows the SHA-256 of the secret alone."""

import hashlib
import hmac
import re
from typing import List, Mapping, NamedTuple, Tuple

from model_server.metrics.predictions import UNKNOWN_KEY
from model_server.settings import SettingsError

ENTRY = re.compile("([A-Za-z0-9_-]{1,64}):([0-9a-f]{64})")


class Caller(NamedTuple):
    """Who asks: the name of a key or `UNKNOWN_KEY`, and whether the secret is one of that name."""

    name: str
    accepted: bool


class ApiKeys:
    """The keys of a server; several may have the same name, so that a new one can replace an old one.

    Attributes:
        names: of the keys, each once; empty when no key is needed.
    """

    def __init__(self, setting: str) -> None:
        """Read entries `NAME:SHA256` with commas between them; none means that no key is needed.

        Raises:
            SettingsError: an entry is malformed; the message does not repeat it.
        """
        self._keys: List[Tuple[str, bytes]] = []
        for number, entry in enumerate(filter(None, setting.split(",")), start=1):
            found = ENTRY.fullmatch(entry)
            if found is None:
                raise SettingsError(
                    f"Entry {number} of MODEL_SERVER_API_KEYS is not NAME:SHA256 (64 lower-case hexadecimal digits)."
                )
            self._keys.append((found[1], bytes.fromhex(found[2])))
        self.names = list(dict.fromkeys(name for name, _ in self._keys))

    def judge(self, headers: Mapping[str, str]) -> Caller:
        """Return whose key a request has, in `X-API-Key` or as `Authorization: Bearer`."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
        name, _, secret = key.partition(".")
        digest = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
        accepted = False
        for known, expected in self._keys:  # all of them, so that the time tells nothing
            accepted |= hmac.compare_digest(digest, expected) and known == name
        return Caller(name if name in self.names else UNKNOWN_KEY, accepted)
