"""The image in a request: read with a limit, in memory, from a form field or from the bare body."""

import re
from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple, Union
from urllib.parse import unquote_to_bytes

from fastapi import HTTPException
from pydantic import BaseModel
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from model_server.metrics.predictions import Reason

FIELD = "file"
UNTYPED = {"", "application/octet-stream"}  # types that say nothing: the bytes decide
FORM = b"multipart/form-data"
WHAT_IS_TAKEN = f"Send the image in the form field '{FIELD}', or as the body with its own Content-Type."
MAX_PARTS = 64
MAX_PADDING = 64  # bytes of blanks after a boundary
MAX_HEADER_BYTES = 16 * 1024  # of one part
MAX_OPTIONS_BYTES = 4096  # of a header with options: python-multipart's time grows with the square
CLIENT_CLOSED_REQUEST = 499  # nobody reads this answer; the metrics need a status, and nginx uses this one


EXTENDED_NAME = re.compile(rb"filename\*\s*=\s*([\w-]+)'[^']*'([^;\s]+)", re.IGNORECASE)
FOLD = re.compile(rb"\r\n[ \t]+")  # a header that goes on in the next line


class Problem(BaseModel):
    """The answer to a request that was refused: what was wrong, in one sentence."""

    detail: str


class RejectedInputError(HTTPException):
    """An input for which no prediction is made, because the client sent something wrong.

    Attributes:
        reason: what.
        nameless: the sentence for what is kept of it, without the name of the client's file.
    """

    def __init__(
        self, status_code: int, reason: Reason, detail: str, headers: Optional[Mapping[str, str]] = None
    ) -> None:
        super().__init__(status_code, detail, dict(headers or {}))
        self.reason = reason
        self.nameless = detail


class Upload(NamedTuple):
    """An image as the client sent it; `filename` is None when the body itself is the image."""

    filename: Optional[str]
    content_type: str
    data: bytes


async def read_upload(request: Request, max_body_bytes: int) -> Upload:
    """Read the image from a request: multipart field `file`, or the body itself when its type is no form.

    Raises:
        RejectedInputError: 413 the body is larger than `max_body_bytes`; 415 it is neither a form nor an image, or it
            is compressed; 400 or 422 the form is malformed or lacks the file; 408 the body came too slowly.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise _unsupported(f"A body with Content-Encoding {encoding} is not accepted; send it as it is.")
    header = request.headers.get("content-type", "")
    media_type, options = _parse_options(header)
    if not media_type:
        raise _unsupported(WHAT_IS_TAKEN)
    if media_type != FORM and not media_type.startswith(b"image/") and media_type.decode("latin-1") not in UNTYPED:
        raise _unsupported(f"A body of the type {media_type.decode('latin-1')} is not accepted. {WHAT_IS_TAKEN}")
    body = await read_body(request, max_body_bytes)
    if media_type != FORM:
        return Upload(None, header, body)
    if not options.get(b"boundary"):
        raise _malformed("The Content-Type multipart/form-data has no boundary.")
    return _find_file(options[b"boundary"], body)


async def read_body(request: Request, max_body_bytes: int) -> bytes:
    """Read the body of a request.

    Raises:
        RejectedInputError: 413 it is larger than `max_body_bytes`; 408 it came too slowly; 499 the client has gone.
    """
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
    if request.scope.get("timed_out"):  # set by the server
        raise RejectedInputError(408, Reason.TIMEOUT, f"The request body arrived too slowly: {received} bytes came.")
    return b"".join(chunks)


def _find_file(boundary: bytes, body: bytes) -> Upload:
    """Find the first file of the wanted field in a form (RFC 7578).

    The body is in memory, so a search for the boundary is enough; a streaming parser reads all headers byte by byte,
    which costs more than everything else that is done with a form.
    """
    delimiter = b"\r\n--" + boundary
    begin = -2 if body.startswith(delimiter[2:]) else body.find(delimiter)  # after a preamble
    if begin == -1:
        raise _malformed("The multipart body lacks its boundary.")
    file: Optional[Upload] = None
    position = begin + len(delimiter)  # after a boundary
    for _ in range(MAX_PARTS + 1):
        after = body[position : position + MAX_PADDING]
        position += len(after) - len(after.lstrip(b" \t"))
        ending = body[position : position + 2]
        if ending == b"--":
            break
        if ending != b"\r\n":
            raise _malformed("The multipart body is malformed after a boundary.")
        blank = body.find(b"\r\n\r\n", position, position + MAX_HEADER_BYTES)
        if blank < 0 and len(body) > position + MAX_HEADER_BYTES:
            raise _malformed(f"A part of the form has headers of more than {MAX_HEADER_BYTES} bytes.")
        end = -1 if blank < 0 else body.find(delimiter, blank + 4)
        if end < 0:
            raise _malformed("The multipart body ends before its closing boundary.")
        headers = _read_headers(body[position + 2 : blank])
        _, options = _parse_options(headers.get(b"content-disposition", b""))
        filename = _read_filename(headers.get(b"content-disposition", b""), options)
        if file is None and options.get(b"name") == FIELD.encode() and filename is not None:
            _check_encoding(headers.get(b"content-transfer-encoding", b""))
            file = Upload(filename, headers.get(b"content-type", b"").decode("latin-1"), body[blank + 4 : end])
        position = end + len(delimiter)
    else:
        raise _malformed(f"The form has more than {MAX_PARTS} parts.")
    if file is None:
        raise RejectedInputError(422, Reason.MISSING_FILE, f"The form has no file in the field '{FIELD}'.")
    if not file.filename and not file.data:  # what a browser sends
        raise RejectedInputError(422, Reason.MISSING_FILE, f"No file was chosen in the field '{FIELD}'.")
    return file


def _read_filename(disposition: bytes, options: Mapping[bytes, bytes]) -> Optional[str]:
    """Return the name of a part's file without its directories, or None if the part is no file.

    `filename*` has precedence (RFC 6266). Browsers write a quote as %22.
    """
    extended = EXTENDED_NAME.search(disposition)
    name = None
    if extended is not None:
        try:
            name = unquote_to_bytes(extended[2]).decode(extended[1].decode("ascii"), "replace")
        except LookupError:  # no such character set: as if it were not there
            _, options = _parse_options(disposition[: extended.start()] + disposition[extended.end() :])
    if name is None and b"filename" in options:
        name = options[b"filename"].decode("utf-8", "replace").replace("%22", '"')
    return None if name is None else re.split(r"[/\\]", name)[-1]


def _check_encoding(encoding: bytes) -> None:
    if encoding.lower() not in {b"", b"binary", b"8bit", b"7bit"}:
        name = encoding.decode("latin-1")
        raise _unsupported(f"A part with Content-Transfer-Encoding {name} is not accepted; send its bytes as they are.")


def _read_headers(lines: bytes) -> Dict[bytes, bytes]:
    headers: Dict[bytes, bytes] = {}
    lines = FOLD.sub(b" ", lines)
    for line in lines.split(b"\r\n") if lines else ():
        name, colon, value = line.partition(b":")
        if not colon or not name.strip():
            raise _malformed("A part of the form has a malformed header.")
        headers[name.lower()] = value.strip()
    return headers


def _parse_options(header: Union[str, bytes]) -> Tuple[bytes, Dict[bytes, bytes]]:
    if len(header) > MAX_OPTIONS_BYTES:
        raise _malformed(f"A header has a value of more than {MAX_OPTIONS_BYTES} bytes.")
    try:
        return parse_options_header(header)
    except TypeError:  # python-multipart 0.0.20, which Python 3.8 has: `a*0=x; a*=y`
        raise _malformed("A header has options that contradict each other.") from None


def _malformed(sentence: str) -> RejectedInputError:
    return RejectedInputError(400, Reason.MALFORMED_FORM, sentence)


def _unsupported(sentence: str) -> RejectedInputError:
    return RejectedInputError(415, Reason.UNSUPPORTED_MEDIA_TYPE, sentence)
