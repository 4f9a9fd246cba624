import io
import struct
import tracemalloc
import zlib
from typing import Any, Callable, Dict

import pytest
from PIL import Image, PngImagePlugin

from model_server.model.image_files import ImageTooLargeError, png_without_extras
from model_server.model.metadata import MAX_PARTS, orientation_of, strip_metadata
from model_server.model.preprocessing import decode
from tests.unit.model_server.model.test_image_files import LIMIT

Encode = Callable[..., bytes]
SECRET = b"51.5007 N, 0.1246 W"


def exif(orientation: int = 1) -> bytes:
    found = Image.Exif()
    found[0x0112] = orientation
    found[0x010E] = SECRET.decode()
    return found.tobytes()


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(content)) + content


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_segments(jpeg: bytes) -> bytes:
    """Put metadata of all kinds into a JPEG: before its scans, and after its end."""
    extras = [segment(0xE0, b"JFXX\0\x10" + SECRET), segment(0xEE, SECRET), segment(0xFE, SECRET)]
    extras += [segment(marker, b"Exif\0\0" + SECRET) for marker in range(0xE1, 0xEE)]
    return jpeg[:2] + b"".join(extras) + jpeg[2:] + SECRET


def png(encode: Encode, mode: str) -> bytes:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", SECRET.decode())
    texts.add_text("Comment", SECRET.decode(), zip=True)
    texts.add_itxt("XML:com.adobe.xmp", SECRET.decode())
    data = encode(mode=mode, kind="PNG", pnginfo=texts, exif=exif())
    end = data.rindex(b"IEND") - 4
    return data[:end] + chunk(b"tIME", bytes(7)) + data[end:] + chunk(b"IDAT", SECRET)


FILES: Dict[str, Callable[[Encode], bytes]] = {
    "jpeg": lambda encode: with_segments(encode(exif=exif(), comment=SECRET)),
    "progressive": lambda encode: with_segments(encode(exif=exif(), progressive=True)),
    "grey": lambda encode: with_segments(encode(mode="L")),
    "restarts": lambda encode: with_segments(encode(restart_marker_rows=1)),
    "cmyk": lambda encode: with_segments(encode(mode="CMYK")),
    "png": lambda encode: png(encode, "RGB"),
    "palette": lambda encode: png(encode, "P"),
    "16 bits": lambda encode: png(encode, "I;16"),
    "webp": lambda encode: encode(kind="WEBP", exif=exif(), xmp=SECRET, icc_profile=SECRET, lossless=True),
    "lossy webp": lambda encode: encode(kind="WEBP", mode="RGBA", exif=exif(), xmp=SECRET) + SECRET,
    "gif": lambda encode: encode(kind="GIF", mode="P", comment=SECRET),
    "bmp": lambda encode: encode(kind="BMP") + SECRET,
    "tiff": lambda encode: encode(kind="TIFF", exif=exif()),
    "tiff of cmyk": lambda encode: encode(kind="TIFF", mode="CMYK", description=SECRET.decode()),
}
SUFFIXES = {"jpeg": ".jpg", "progressive": ".jpg", "grey": ".jpg", "restarts": ".jpg", "cmyk": ".jpg"}
SUFFIXES.update({"webp": ".webp", "lossy webp": ".webp"})


def opened(data: bytes) -> Any:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("kind", FILES)
def test_metadata_are_gone_and_the_pixels_are_the_same(encode: Encode, kind: str) -> None:
    data = FILES[kind](encode)
    assert SECRET in data or kind == "png"
    stripped = strip_metadata(data)

    assert SECRET not in stripped.content
    assert stripped.suffix == SUFFIXES.get(kind, ".png")
    assert decode(stripped.content, LIMIT).tobytes() == decode(data, LIMIT).tobytes()
    image = opened(stripped.content)
    assert dict(image.getexif()) == {}
    assert set(image.info) <= {
        "jfif",
        "jfif_version",
        "jfif_unit",
        "jfif_density",
        "dpi",
        "adobe",
        "adobe_transform",
    } | {*("progressive", "progression", "loop", "background", "timestamp", "duration", "transparency")}


def test_what_has_no_metadata_is_left_as_it_is(encode: Encode) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encode(kind=kind)
        assert strip_metadata(data).content == data


def test_a_thumbnail_of_jfif_is_cut_off(encode: Encode) -> None:
    data = encode()
    assert data[2:4] == b"\xff\xe0"
    header = bytearray(data[6:20])
    header[12:14] = b"\2\3"
    stripped = strip_metadata(data[:2] + segment(0xE0, bytes(header) + SECRET) + data[20:])
    assert stripped.content == data


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png", "webp"])
def test_of_a_damaged_file_what_can_be_is_cut_out(encode: Encode, kind: str) -> None:
    data = FILES[kind](encode)
    for length in range(0, len(data), 7):
        stripped = strip_metadata(data[:length])
        assert stripped.suffix in {SUFFIXES.get(kind, ".png"), ".bin"}
        assert SECRET not in stripped.content
    assert len(strip_metadata(data[:-40]).content) > 80


@pytest.mark.parametrize("data", [b"", b"no image", b"GIF89a" + SECRET, b"\0\0\0\x18ftypheic" + SECRET])
def test_bytes_that_nobody_can_parse_are_named_so(data: bytes) -> None:
    assert strip_metadata(data) == (data, ".bin")


def test_another_format_is_made_a_png_up_to_4_megapixels(encode: Encode) -> None:
    with pytest.raises(ImageTooLargeError):
        strip_metadata(encode((2001, 2000), kind="BMP"))


def test_the_orientation_is_read_before_it_goes(encode: Encode) -> None:
    data = encode(exif=exif(6))
    assert orientation_of(data) == 6
    assert orientation_of(strip_metadata(data).content) == 1
    assert orientation_of(b"none") == 1
    assert orientation_of(encode(kind="WEBP", exif=exif(6))) == orientation_of(encode(kind="TIFF", exif=exif(6))) == 6


def test_a_png_is_not_asked_for_its_orientation(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    large = encode((14_000, 14_000), mode="1", kind="PNG")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    assert orientation_of(large) == 1
    # The model does not see it turned: decoding leaves eXIf out.
    assert orientation_of(encode(kind="PNG", exif=exif(6))) == 1


PNG = b"\x89PNG\r\n\x1a\n"
MANY = 400_000
HOSTILE = {
    "scans": b"\xff\xd8" + b"\xff\xda\0\2" * MANY,
    "tables": b"\xff\xd8" + b"\xff\xdb\0\2" * MANY,
    "bare": b"\xff\xd8" + b"\xff\1" * MANY,
    "png": PNG + chunk(b"IDAT", b"") * MANY,
    "png of texts": PNG + chunk(b"tEXt", b"") * MANY,
    "webp": b"RIFF" + struct.pack("<I", 4 + 8 * MANY) + b"WEBP" + b"ALPH\0\0\0\0" * MANY,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_of_a_file_of_too_many_parts_nothing_is_left(kind: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLargeError, match=f" of more than {MAX_PARTS} "):
            strip_metadata(HOSTILE[kind])
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_for_decoding_a_png_may_have_any_number_of_chunks() -> None:
    data = HOSTILE["png"]
    mixed = PNG + (chunk(b"IDAT", b"") + chunk(b"tEXt", b"")) * (MAX_PARTS + 1)
    assert png_without_extras(data) is data  # without a copy
    assert png_without_extras(mixed) == PNG + chunk(b"IDAT", b"") * (MAX_PARTS + 1)


def test_a_file_of_many_parts_is_stripped(encode: Encode) -> None:
    data = encode()
    assert strip_metadata(data[:2] + segment(0xFE, SECRET) * (MAX_PARTS - 30) + data[2:]).content == data
