"""The route /feedback: a client tells the true class of a prediction that it had, by the prediction's id.

An id carries what is counted, and is signed with a key that all servers share. So none of them keeps predictions, and
each one takes feedback to the predictions of the others.
"""

import base64
import hashlib
import hmac
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from fastapi import Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from model_server.metrics.feedback import FeedbackMetrics, FeedbackReason
from model_server.model.accuracy import CONFIDENCES
from model_server.model.bundle import Manifest
from model_server.settings import SettingsError
from model_server.upload import Problem, read_body

SHORTEST_KEY = 32  # characters
MAX_BODY_BYTES = 4096
MAX_AGE_SECONDS = 90 * 24 * 3600
REMEMBERED = 1 << 16  # ids that have been used, in all workers of a service
_HEAD = struct.Struct(">BI8sBB")  # version of the format, seconds since 1970, random, bin, bytes of the model's version
_FORMAT = 1
_TAG = 16  # bytes of the signature


class RejectedFeedbackError(HTTPException):
    """Feedback that is not counted."""

    def __init__(self, status_code: int, reason: FeedbackReason, detail: str) -> None:
        super().__init__(status_code, detail)
        self.reason = reason


class Predicted(NamedTuple):
    """What an id says of its prediction: `bin` is the number of its confidence's bin, `tag` is its own."""

    version: str
    likely_class: str
    bin: int
    tag: bytes


class PredictionIds:
    """Makes and reads the ids of predictions."""

    def __init__(self, file: Optional[Path]) -> None:
        """Read keys from a file, one in a line: the first one signs, all are accepted, so that one can be replaced.

        Raises:
            SettingsError: the file cannot be read, or a key is too short; the message does not repeat it.
        """
        try:
            keys = [] if file is None else file.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"{file}, the file of MODEL_SERVER_FEEDBACK_KEYS_FILE, cannot be read: {error}."
            ) from error
        for number, key in enumerate(keys, start=1):
            if len(key) < SHORTEST_KEY:
                raise SettingsError(f"Key {number} in {file} has less than {SHORTEST_KEY} characters.")
        self._keys: List[bytes] = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        """Whether there is a key to sign with."""
        return bool(self._keys)

    def issue(self, version: str, likely_class: str, bin_: int) -> str:
        """Return the id of a new prediction: letters, digits, - and _."""
        named = version.encode()
        head = _HEAD.pack(_FORMAT, int(time.time()), os.urandom(8), bin_, len(named))
        content = head + named + likely_class.encode()
        return base64.urlsafe_b64encode(content + _sign(self._keys[0], content)).rstrip(b"=").decode()

    def read(self, text: str) -> Predicted:
        """Return what an id says.

        Raises:
            RejectedFeedbackError: 400 it is none; 403 none of the keys has signed it; 410 it is too old.
        """
        try:
            signed = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), b"-_", validate=True)
            content, tag = signed[:-_TAG], signed[-_TAG:]
            format_, made, _, bin_, length = _HEAD.unpack_from(content)
        except (ValueError, struct.error):
            raise RejectedFeedbackError(400, FeedbackReason.MALFORMED, "The id is not one of a prediction.") from None
        if not any(hmac.compare_digest(tag, _sign(key, content)) for key in self._keys):
            sentence = "The id was signed with another key, or changed."
            raise RejectedFeedbackError(403, FeedbackReason.FORGED, sentence)
        if time.time() - made > MAX_AGE_SECONDS or format_ != _FORMAT:
            days = MAX_AGE_SECONDS // (24 * 3600)
            raise RejectedFeedbackError(410, FeedbackReason.EXPIRED, f"The prediction is older than {days} days.")
        named = content[_HEAD.size :]
        return Predicted(named[:length].decode(), named[length:].decode(), min(bin_, len(CONFIDENCES) - 1), tag)


def _sign(key: bytes, content: bytes) -> bytes:
    return hmac.new(key, content, hashlib.sha256).digest()[:_TAG]


class UsedIds:
    """Remembers the newest ids that have been used, in memory that all workers share.

    What it cannot promise: an id that another server or an earlier service has seen is new to this one, and after
    `REMEMBERED` others, an id is forgotten.
    """

    def __init__(self) -> None:
        """Reserve the memory; workers that are forked later share it."""
        self._tags = memoryview(mmap.mmap(-1, 8 * REMEMBERED)).cast("Q")

    def use(self, tag: bytes) -> bool:
        """Return whether the id with this tag is new, and remember it."""
        number = int.from_bytes(tag[:8], "big")
        place = number % REMEMBERED
        if self._tags[place] == number:
            return False
        self._tags[place] = number
        return True


class FeedbackRequest(BaseModel):
    """What a client tells: the id of a prediction, and its true class."""

    id: str
    label: str


class FeedbackAnswer(BaseModel):
    """What the model had said, and whether that was right."""

    likely_class: str
    label: str
    correct: bool


FEEDBACK_REQUEST: Dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": FeedbackRequest.model_json_schema()}},
    }
}
FEEDBACK_ERRORS: Dict[Any, Dict[str, Any]] = {
    400: {
        "description": "The body is no JSON object of an id and a label, or the id is not one of a prediction",
        "model": Problem,
    },
    401: {"description": "The server asks for a key, and the request has none that it knows", "model": Problem},
    403: {"description": "The id was signed with another key, or changed", "model": Problem},
    408: {"description": "The body arrived too slowly", "model": Problem},
    409: {"description": "The id has been used", "model": Problem},
    410: {"description": "The prediction is too old", "model": Problem},
    413: {"description": "The body is too large", "model": Problem},
    415: {"description": "The body is compressed, or no JSON by its type", "model": Problem},
    422: {"description": "The label is no class of the model", "model": Problem},
}


class Feedback:
    """Answers /feedback."""

    def __init__(
        self, ids: PredictionIds, manifest: Manifest, metrics: FeedbackMetrics, authorize: Callable[[Request], None]
    ) -> None:
        self._ids, self._classes, self._metrics, self._authorize = ids, manifest.classes, metrics, authorize
        self._used = UsedIds()

    async def take(self, request: Request) -> JSONResponse:
        """Count the true class of a prediction."""
        self._authorize(request)
        body = await read_body(request, MAX_BODY_BYTES)
        try:
            return JSONResponse(self._count(body))
        except RejectedFeedbackError as error:
            self._metrics.reject(error.reason)
            request.scope["problem"] = error.detail
            raise

    def _count(self, body: bytes) -> Dict[str, Any]:
        try:
            told = FeedbackRequest.model_validate_json(body)
        except ValueError:
            sentence = 'The body must be JSON like {"id": "…", "label": "…"}.'
            raise RejectedFeedbackError(400, FeedbackReason.MALFORMED, sentence) from None
        predicted = self._ids.read(told.id)
        if told.label not in self._classes and told.label != predicted.likely_class:
            sentence = f"{told.label[:100]!r} is no class of the model."
            raise RejectedFeedbackError(422, FeedbackReason.UNKNOWN_LABEL, sentence)
        if not self._used.use(predicted.tag):
            raise RejectedFeedbackError(409, FeedbackReason.REPLAYED, "There was feedback with this id before.")
        self._metrics.count(predicted.version, predicted.likely_class, told.label, predicted.bin)
        correct = told.label == predicted.likely_class
        return {"likely_class": predicted.likely_class, "label": told.label, "correct": correct}
