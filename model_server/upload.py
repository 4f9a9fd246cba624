"""The image in a request: read with a limit, in memory, from a form field or from the bare body."""

from enum import Enum
from typing import TYPE_CHECKING, Dict, List, NamedTuple, Optional

from fastapi import HTTPException
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = "file"
MAX_PARTS = 64
MAX_HEADER_BYTES = 16 * 1024  # of one part
CHUNK = 64 * 1024
CLIENT_CLOSED_REQUEST = 499  # nobody reads the answer; the number is for the metrics, as nginx has it


class Reason(Enum):
    """Why an input is rejected, as the metrics name it."""

    NOT_AN_IMAGE = "not_an_image"
    EMPTY = "empty"
    UNDECODABLE = "undecodable"
    IMAGE_TOO_LARGE = "image_too_large"
    BODY_TOO_LARGE = "body_too_large"
    MALFORMED_FORM = "malformed_form"
    MISSING_FILE = "missing_file"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    INCOMPLETE = "incomplete"


class RejectedInputError(HTTPException):
    """An input that no prediction is made for, by a fault of the client."""

    def __init__(self, status_code: int, reason: Reason, detail: str) -> None:
        super().__init__(status_code, detail)
        self.reason = reason


class Upload(NamedTuple):
    """An image as it was sent; `filename` is None for a bare body."""

    filename: Optional[str]
    content_type: str
    data: bytes


async def read_upload(request: Request, max_body_bytes: int) -> Upload:
    """Read the image from a request: multipart field `file`, or the body itself when its type is no form.

    Raises:
        RejectedInputError: 413 the body is larger than `max_body_bytes`; 415 it is a form of another kind;
            400 or 422 the form is malformed or lacks the file.
    """
    header = request.headers.get("content-type", "")
    media_type, options = parse_options_header(header)
    body = await _read_body(request, max_body_bytes)
    if media_type == b"multipart/form-data":
        if not options.get(b"boundary"):
            raise RejectedInputError(
                400, Reason.MALFORMED_FORM, "The Content-Type multipart/form-data has no boundary."
            )
        return _find_file(options[b"boundary"], body)
    if not media_type or media_type == b"application/x-www-form-urlencoded":
        raise RejectedInputError(
            415,
            Reason.UNSUPPORTED_MEDIA_TYPE,
            f"Send the image in the form field '{FIELD}', or as the body with its own Content-Type.",
        )
    return Upload(None, header, body)


async def _read_body(request: Request, max_body_bytes: int) -> bytes:
    too_large = RejectedInputError(
        413, Reason.BODY_TOO_LARGE, f"The request body is larger than {max_body_bytes} bytes."
    )
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > max_body_bytes:
        raise too_large
    chunks: List[bytes] = []
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > max_body_bytes:
                raise too_large
            chunks.append(chunk)
    except ClientDisconnect:
        raise RejectedInputError(
            CLIENT_CLOSED_REQUEST, Reason.INCOMPLETE, "The client went away before the body was complete."
        ) from None
    return b"".join(chunks)


class _Form:
    """Callbacks of the multipart parser; keeps the first part of the wanted field and skips all others."""

    def __init__(self) -> None:
        self.file: Optional[Upload] = None
        self.complete = False
        self._parts = 0
        self._header_bytes = 0
        self._name: List[bytes] = []
        self._value: List[bytes] = []
        self._headers: Dict[bytes, bytes] = {}
        self._data: Optional[List[bytes]] = None

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self.on_part_begin,
            "on_header_field": self.on_header_field,
            "on_header_value": self.on_header_value,
            "on_header_end": self.on_header_end,
            "on_headers_finished": self.on_headers_finished,
            "on_part_data": self.on_part_data,
            "on_part_end": self.on_part_end,
            "on_end": self.on_end,
        }

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise RejectedInputError(400, Reason.MALFORMED_FORM, f"The form has more than {MAX_PARTS} parts.")
        self._header_bytes = 0
        self._headers = {}

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._name.append(data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._value.append(data[start:end])

    def on_header_end(self) -> None:
        self._headers[b"".join(self._name).lower()] = b"".join(self._value)
        self._name, self._value = [], []

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        wanted = self.file is None and options.get(b"name") == FIELD.encode() and b"filename" in options
        self._data = [] if wanted else None
        self._filename = options.get(b"filename", b"").decode("utf-8", "replace")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._data is not None:
            self._data.append(data[start:end])

    def on_part_end(self) -> None:
        if self._data is not None:
            content_type = self._headers.get(b"content-type", b"").decode("latin-1")
            self.file = Upload(self._filename, content_type, b"".join(self._data))
            self._data = None

    def on_end(self) -> None:
        self.complete = True

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise RejectedInputError(
                400, Reason.MALFORMED_FORM, f"A part of the form has headers of more than {MAX_HEADER_BYTES} bytes."
            )


def _find_file(boundary: bytes, body: bytes) -> Upload:
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks())
        # In chunks, so that the parser, which goes through headers byte by byte, is stopped soon.
        for start in range(0, len(body), CHUNK):
            parser.write(body[start : start + CHUNK])
    except FormParserError as error:
        raise RejectedInputError(400, Reason.MALFORMED_FORM, "The multipart body is malformed.") from error
    if not form.complete:
        raise RejectedInputError(400, Reason.MALFORMED_FORM, "The multipart body ends before its closing boundary.")
    if form.file is None:
        raise RejectedInputError(422, Reason.MISSING_FILE, f"The form has no file in the field '{FIELD}'.")
    return form.file
