"""The reader of forms against python-multipart, on forms and on bytes that hypothesis makes up."""

from typing import Dict, List, NamedTuple, Optional, Tuple, Union

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from python_multipart.multipart import MultipartParser, parse_options_header

from model_server.upload import FIELD, RejectedInputError, Upload
from tests.unit.model_server.test_upload import FORM, read

bounded = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])

BOUNDARY = st.text("abcXYZ019'()+_,-./:=?", min_size=1, max_size=40).filter(lambda text: not text.endswith(" "))
# What a quoted name may have without being escaped; %22 and paths have tests of their own.
NAME = st.text(
    st.characters(min_codepoint=32, blacklist_characters='"\\/%\x7f', blacklist_categories=["Cs", "Cc"]), max_size=30
)
TYPE = st.sampled_from(["image/jpeg", "image/png", "application/octet-stream", "text/plain; charset=utf-8", ""])


class Part(NamedTuple):
    """A part of a form; `filename` is None for a field that is no file."""

    name: str
    filename: Optional[str]
    content_type: str
    data: bytes

    def encoded(self) -> bytes:
        disposition = f'Content-Disposition: form-data; name="{self.name}"'
        disposition += "" if self.filename is None else f'; filename="{self.filename}"'
        kind = f"Content-Type: {self.content_type}\r\n" if self.content_type else ""
        return f"{disposition}\r\n{kind}\r\n".encode() + self.data


# Data that look like the ends of lines and boundaries more often than chance would make them.
DATA = st.lists(
    st.one_of(st.binary(max_size=40), st.sampled_from([b"\r\n", b"--", b"\r\n--", b"\r", b"\n"])), max_size=8
).map(b"".join)
PART = st.builds(Part, st.sampled_from([FIELD, "file2", "note"]) | NAME, st.none() | NAME, TYPE, DATA)


def form(boundary: str, parts: List[Part]) -> bytes:
    delimiter = b"--" + boundary.encode()
    return b"".join(delimiter + b"\r\n" + part.encoded() + b"\r\n" for part in parts) + delimiter + b"--\r\n"


def by_python_multipart(boundary: str, body: bytes) -> List[Tuple[Dict[bytes, bytes], bytes]]:
    """Return the headers and the data of each part."""
    found: List[Tuple[Dict[bytes, bytes], bytearray]] = []
    field, value = bytearray(), bytearray()

    def end_of_header() -> None:
        found[-1][0][bytes(field).lower()] = bytes(value)
        field.clear()
        value.clear()

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": lambda: found.append(({}, bytearray())),
            "on_part_data": lambda data, start, end: found[-1][1].extend(data[start:end]),
            "on_header_field": lambda data, start, end: field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: value.extend(data[start:end]),
            "on_header_end": end_of_header,
        },
    )
    parser.write(body)
    parser.finalize()
    return [(headers, bytes(data)) for headers, data in found]


def first_file(parts: List[Tuple[Dict[bytes, bytes], bytes]]) -> Optional[Upload]:
    for headers, data in parts:
        _, options = parse_options_header(headers.get(b"content-disposition", b""))
        if options.get(b"name") == FIELD.encode() and b"filename" in options:
            return Upload(options[b"filename"].decode(), headers.get(b"content-type", b"").decode(), data)
    return None


def answer(body: bytes, content_type: str = FORM) -> Union[Upload, int]:
    """Return the file in a form, or the status with which the form is refused."""
    try:
        return read(body, content_type)
    except RejectedInputError as error:
        return error.status_code


@bounded
@given(BOUNDARY, st.lists(PART, min_size=1, max_size=5))
def test_a_form_is_read_as_python_multipart_reads_it(boundary: str, parts: List[Part]) -> None:
    body = form(boundary, parts)
    if any(b"--" + boundary.encode() in part.data for part in parts):
        return  # a boundary in the data is none that a client would choose
    expected = first_file(by_python_multipart(boundary, body))
    if expected is not None and not expected.filename and not expected.data:
        expected = None  # what a browser sends when no file was chosen
    assert answer(body, f'multipart/form-data; boundary="{boundary}"') == (expected or 422)


@bounded
@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 400))
@example(b"", 0, 400)
def test_damage_is_refused_or_read_and_never_fails(junk: bytes, start: int, end: int) -> None:
    body = form("XX", [Part("note", None, "", b"hello"), Part(FIELD, "a.jpg", "image/jpeg", b"pixels\r\n" * 9)])
    damaged = body[:start] + junk + body[end:]
    assert answer(damaged) in {400, 415, 422} or isinstance(answer(damaged), Upload)
