"""The self-check before a server accepts connections: is it ready, and can it classify an image?"""

import asyncio
from io import BytesIO
from typing import Any, Dict, List

from PIL import Image
from starlette.types import ASGIApp, Message

IMAGE_SIZE = (8, 6)  # pixels, below every limit that the settings allow


class SelfCheckError(RuntimeError):
    """A server that must not accept connections; the message is one sentence."""


def check(app: ASGIApp) -> None:
    """Request `/readyz` and a prediction from an app.

    Raises:
        SelfCheckError: it answered with another status than 200, or not at all.
    """
    buffer = BytesIO()
    Image.linear_gradient("L").resize(IMAGE_SIZE).convert("RGB").save(buffer, "JPEG")
    asyncio.run(_ask(app, "GET", "/readyz", b""))
    asyncio.run(_ask(app, "POST", "/predict", buffer.getvalue()))


async def _ask(app: ASGIApp, method: str, path: str, body: bytes) -> None:
    scope: Dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"self-check"), (b"content-type", b"image/jpeg"), (b"content-length", b"%d" % len(body))],
        "client": ("127.0.0.1", 0),
        "server": None,
        "self_check": True,  # needs no key, and a drained server may start
    }
    answers: List[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        answers.append(message)

    try:
        await app(scope, receive, send)
    except Exception as error:  # any error here would be a 500 for a user
        raise SelfCheckError(f"{method} {path} failed in a check before the start: {error!r}.") from error
    status = next((answer["status"] for answer in answers if answer["type"] == "http.response.start"), None)
    if status != 200:
        text = b"".join(answer.get("body", b"") for answer in answers).decode(errors="replace")[:200]
        raise SelfCheckError(f"{method} {path} was answered with {status} in a check before the start: {text}")
