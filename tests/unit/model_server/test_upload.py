import asyncio
import contextlib
import random
from typing import Any, Dict, List, Optional

import pytest
from starlette.requests import Request

from model_server.metrics.predictions import Reason
from model_server.upload import MAX_HEADER_BYTES, MAX_PARTS, RejectedInputError, Upload, read_upload

LIMIT = 1_000_000
FORM = "multipart/form-data; boundary=XX"


def part(headers: str, data: bytes = b"pixels") -> bytes:
    return b"--XX\r\n" + headers.encode() + b"\r\n\r\n" + data + b"\r\n"


def file_part(data: bytes = b"pixels", name: str = "file", filename: str = "a.jpg", kind: str = "image/jpeg") -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"; filename="{filename}"\r\nContent-Type: {kind}', data)


END = b"--XX--\r\n"


def read(
    body: bytes, content_type: Optional[str] = FORM, limit: int = LIMIT, chunk: int = 1000, **headers: str
) -> Upload:
    messages: List[Dict[str, Any]] = [
        {"type": "http.request", "body": body[start : start + chunk], "more_body": start + chunk < len(body)}
        for start in range(0, len(body), chunk)
    ] or [{"type": "http.request", "body": b"", "more_body": False}]
    waiting = iter(messages)

    async def receive() -> Dict[str, Any]:
        return next(waiting, {"type": "http.disconnect"})

    if content_type is not None:
        headers["content-type"] = content_type
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "headers": [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()],
    }
    return asyncio.run(read_upload(Request(scope, receive), limit))


def refused(body: bytes, content_type: Optional[str] = FORM, **options: Any) -> RejectedInputError:
    with pytest.raises(RejectedInputError) as caught:
        read(body, content_type, **options)
    detail = caught.value.detail
    assert detail.endswith(".")
    assert "\n" not in detail
    return caught.value


@pytest.mark.parametrize("chunk", [1, 7, 1000, 10**6])
def test_a_file_arrives_whole_however_it_is_cut(chunk: int) -> None:
    data = random.Random(0).getrandbits(8 * 5000).to_bytes(5000, "big") + b"\r\n--X\r\n--XY"
    body = part('Content-Disposition: form-data; name="note"', b"hello") + file_part(data) + END
    assert read(body, chunk=chunk) == Upload("a.jpg", "image/jpeg", data)


def test_a_file_larger_than_a_chunk_of_the_parser() -> None:
    data = random.Random(1).getrandbits(8 * 300_000).to_bytes(300_000, "big")
    assert read(file_part(data) + END, chunk=65_536).data == data


def test_the_bare_body_is_an_image_too() -> None:
    assert read(b"pixels", "image/jpeg") == Upload(None, "image/jpeg", b"pixels")


def test_the_first_of_several_files_counts() -> None:
    assert read(file_part(b"one") + file_part(b"two") + END).data == b"one"


def test_names_beyond_ascii() -> None:
    assert read(file_part(filename="лимон 🍋.jpg") + END).filename == "лимон 🍋.jpg"


def test_headers_in_any_case_and_a_part_without_type() -> None:
    assert read(part('CONTENT-DISPOSITION: form-data; name="file"; filename=""') + END) == Upload("", "", b"pixels")


def test_a_preamble_and_blanks_after_boundaries_are_accepted() -> None:
    padded = (file_part(b"image") + END).replace(b"--XX", b"--XX \t")
    for body in (b"\r\n" + padded, b"a preamble\r\n" + padded):
        assert read(body).data == b"image"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        b"--XX" + b" " * 1000 + b"\r\n\r\n",
        b"--YY\r\n\r\n",
        b"--XX",
        b"--XX\r\n",
        file_part(),
        (file_part() + END)[:-4],
        b"--XX\r\nno colon\r\n\r\nx\r\n--XX--",
        b"--XX\r\n: no name\r\n\r\nx\r\n--XX--",
        bytes(2000),
    ],
)
def test_a_malformed_form_is_refused(body: bytes) -> None:
    error = refused(body)
    assert (error.status_code, error.reason) == (400, Reason.MALFORMED_FORM)


@pytest.mark.parametrize(
    "body",
    [
        END,
        file_part(name="image") + END,
        part('Content-Disposition: form-data; name="file"') + END,
        part("Content-Type: image/jpeg") + END,
        part("Content-Disposition: \x00;;==") + END,
    ],
)
def test_a_form_without_the_file_is_refused(body: bytes) -> None:
    error = refused(body)
    assert error.status_code in {400, 422}
    if error.status_code == 422:
        assert error.reason is Reason.MISSING_FILE
        assert error.detail == "The form has no file in the field 'file'."


@pytest.mark.parametrize("option", ["", "; boundary=", "; x"])
def test_a_form_without_a_boundary_is_refused(option: str) -> None:
    error = refused(file_part() + END, "multipart/form-data" + option)
    assert (error.status_code, error.detail) == (400, "The Content-Type multipart/form-data has no boundary.")


@pytest.mark.parametrize("options", ["boundary*0=X; boundary*=Y", ";" * 5000], ids=["contradictory", "long"])
def test_options_that_are_hard_to_read_are_refused(options: str) -> None:
    """python-multipart 0.0.20, which Python 3.8 has, raises TypeError for the first; its time grows with the square."""
    assert refused(file_part() + END, f"multipart/form-data; {options}").status_code == 400
    assert refused(part(f"Content-Disposition: form-data; {options}") + END).reason in {
        Reason.MALFORMED_FORM,
        Reason.MISSING_FILE,  # newer releases leave out such options
    }


def test_a_far_too_long_boundary_is_refused() -> None:
    assert refused(file_part() + END, "multipart/form-data; boundary=" + "x" * 5000).status_code == 400


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ("filename*=utf-8''%E8%8B%B9%E6%9E%9C.jpg", "苹果.jpg"),
        ("filename=\"plain.jpg\"; filename*=UTF-8'en'%E8%8B%B9%E6%9E%9C.jpg", "苹果.jpg"),
        ("filename*=iso-8859-1''%E4.jpg", "ä.jpg"),
        ("filename=\"a.jpg\"; filename*=no-such-set''b.jpg", "a.jpg"),
        ('filename="q%22b.jpg"', 'q"b.jpg'),
        ('filename="q\\"b.jpg"', 'q"b.jpg'),
        ('filename="/home/x/a.jpg"', "a.jpg"),
        ('filename="C:\\\\Users\\\\me\\\\a.jpg"', "a.jpg"),
        ('\r\n filename="folded.jpg"', "folded.jpg"),
        ('\r\n\tfilename="folded.jpg"', "folded.jpg"),
        ("filename=a.jpg", "a.jpg"),
    ],
)
def test_names_as_clients_write_them(disposition: str, name: str) -> None:
    headers = f'Content-Disposition: form-data; name="file"; {disposition}\r\nContent-Type: image/jpeg'
    assert read(part(headers) + END) == Upload(name, "image/jpeg", b"pixels")


def test_no_file_chosen_in_a_browser() -> None:
    error = refused(file_part(b"", filename="", kind="application/octet-stream") + END)
    assert (error.status_code, error.detail) == (422, "No file was chosen in the field 'file'.")


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable"])
def test_an_encoded_part_is_refused(encoding: str) -> None:
    headers = 'Content-Disposition: form-data; name="file"; filename="a.jpg"\r\nContent-Transfer-Encoding: '
    error = refused(part(headers + encoding) + END)
    assert (error.status_code, encoding in error.detail) == (415, True)
    assert read(part(headers + "binary") + END).data == b"pixels"


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_a_compressed_body_is_refused(encoding: str) -> None:
    error = refused(file_part() + END, content_encoding=encoding)
    assert (error.status_code, encoding in error.detail) == (415, True)
    assert read(file_part() + END, content_encoding="identity").data == b"pixels"


@pytest.mark.parametrize("content_type", ["application/json", "multipart/mixed; boundary=XX", "text/plain"])
def test_another_body_is_refused_with_what_is_accepted(content_type: str) -> None:
    error = refused(b"{}", content_type)
    assert (error.status_code, error.reason) == (415, Reason.UNSUPPORTED_MEDIA_TYPE)
    assert error.detail == (
        f"A body of the type {content_type.split(';', maxsplit=1)[0]} is not accepted. "
        "Send the image in the form field 'file', or as the body with its own Content-Type."
    )


@pytest.mark.parametrize("content_type", [None, "", "application/x-www-form-urlencoded"])
def test_other_forms_are_refused(content_type: Optional[str]) -> None:
    error = refused(b"file=1", content_type)
    assert (error.status_code, error.reason) == (415, Reason.UNSUPPORTED_MEDIA_TYPE)


def test_a_declared_length_is_refused_before_anything_is_read() -> None:
    assert refused(b"", "image/jpeg", content_length=str(LIMIT + 1)).status_code == 413


def test_an_undeclared_length_is_counted() -> None:
    error = refused(bytes(1001), "image/jpeg", limit=1000, chunk=100)
    assert (error.status_code, error.detail) == (413, "The request body is larger than 1000 bytes.")
    assert len(read(bytes(1000), "image/jpeg", limit=1000).data) == 1000


def test_a_client_that_goes_away_is_no_server_error() -> None:
    async def receive() -> Dict[str, Any]:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", b"image/jpeg")]}
    with pytest.raises(RejectedInputError) as caught:
        asyncio.run(read_upload(Request(scope, receive), LIMIT))
    assert (caught.value.status_code, caught.value.reason) == (499, Reason.INCOMPLETE)


def test_floods_are_stopped() -> None:
    assert "parts" in refused(part("A: b") * (MAX_PARTS + 1) + END).detail
    assert refused(part("A: " + "b" * MAX_HEADER_BYTES) + END).status_code == 400
    assert refused(part("A: b\r\n" * MAX_HEADER_BYTES + "A: b") + END).status_code == 400


def test_noise_is_a_client_error_at_most() -> None:
    rng = random.Random(0)
    whole = part('Content-Disposition: form-data; name="note"', b"hello") + file_part() + END
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        with contextlib.suppress(RejectedInputError):
            read(bytes(damaged))
