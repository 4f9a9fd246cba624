"""An image file without what it says beside its pixels: EXIF data with places and names, comments, thumbnails.

The pixels are not encoded again, so what is left decodes to what the model has seen.
"""

import re
from io import BytesIO
from typing import List, NamedTuple

from PIL import Image

from model_server.model.image_files import UndecodableImageError, UnsupportedImageError, png_without_extras
from model_server.model.preprocessing import FORMATS, LARGE, ORIENTATION, UPRIGHT, decode

UNKNOWN = ".bin"  # suffix of bytes whose container cannot be parsed
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)  # but for those within a scan
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# Tables, frames and scans: whatever else a JPEG has, applications put there.
_OF_PIXELS = {*range(0xC0, 0xD0), *range(0xDA, 0xDE)} - {0xC8, _END_OF_IMAGE}
_BARE = {0x01, 0xD8}  # markers without a segment
_JFIF, _ADOBE = (0xE0, b"JFIF\0"), (0xEE, b"Adobe")  # say what the colours mean
_WEBP_OF_PIXELS = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"}
_WEBP_EXTRAS = 0x20 | 0x08 | 0x04  # flags of VP8X: profile of colours, EXIF, XMP


class Stripped(NamedTuple):
    """An image file without its metadata, and the suffix of its name; bytes that nobody can parse are as they were."""

    content: bytes
    suffix: str


def strip_metadata(data: bytes) -> Stripped:
    """Cut the metadata out of a file, also one that is damaged: of JPEG, PNG and WebP, only what makes pixels is left.

    A file of another format becomes a PNG of the pixels that the model sees. Bytes that cannot be decoded as one are
    left as they are, with the suffix `.bin`.

    Raises:
        ImageTooLargeError: it is of another format and has over 4 megapixels; a PNG of these would take a second.
    """
    if data.startswith(_JPEG):
        return Stripped(_jpeg(data), ".jpg")
    if data.startswith(_PNG):
        return Stripped(png_without_extras(data), ".png")
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return Stripped(_webp(data), ".webp")
    try:
        image = decode(data, LARGE)
    except (UndecodableImageError, UnsupportedImageError):
        return Stripped(data, UNKNOWN)
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # the fastest
    return Stripped(png_without_extras(buffer.getvalue()), ".png")


def orientation_of(data: bytes) -> int:
    """Return how the EXIF data of an image say that it is turned, 1 to 8; 1 (upright) where they say nothing."""
    try:
        return int(Image.open(BytesIO(data), formats=FORMATS).getexif().get(ORIENTATION, UPRIGHT))
    except Exception:  # decoders raise nearly any exception on hostile bytes
        return UPRIGHT


def _jpeg(data: bytes) -> bytes:
    """Keep tables, frames and scans, up to the end of the image: some phones append a film to it."""
    kept: List[bytes] = [data[:2]]
    position = 2
    while True:
        found = _MARKER.search(data, position)
        if found is None:
            return b"".join(kept)
        begin = found.start()
        marker = data[begin + 1]
        if marker == _END_OF_IMAGE:
            kept.append(data[begin : begin + 2])
            return b"".join(kept)
        if marker in _BARE:
            position = begin + 2
            continue
        length = int.from_bytes(data[begin + 2 : begin + 4], "big")
        position = begin + 2 + max(2, length)
        if marker in _OF_PIXELS:
            kept.append(data[begin:position])
        elif (marker, data[begin + 4 : begin + 9]) == _JFIF and length >= 16:
            kept.append(data[begin : begin + 2] + b"\0\x10" + data[begin + 4 : begin + 16] + b"\0\0")  # no thumbnail
        elif (marker, data[begin + 4 : begin + 9]) == _ADOBE and length >= 14:
            kept.append(data[begin : begin + 2] + b"\0\x0e" + data[begin + 4 : begin + 16])
        if marker == _START_OF_SCAN:
            following = _MARKER.search(data, position)
            end = len(data) if following is None else following.start()
            kept.append(data[position:end])
            position = end


def _webp(data: bytes) -> bytes:
    kept: List[bytes] = []
    position, end = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while position < end:
        kind = data[position : position + 4]
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        following = position + 8 + size + size % 2
        chunk = data[position : min(following, end)]
        if kind == b"VP8X":
            chunk = chunk[:8] + bytes(byte & ~_WEBP_EXTRAS for byte in chunk[8:9]) + chunk[9:]
        if kind in _WEBP_OF_PIXELS:
            kept.append(chunk)
        position = following
    content = b"".join(kept)
    return b"RIFF" + (4 + len(content)).to_bytes(4, "little") + b"WEBP" + content
