"""An image file without what it says beside its pixels: EXIF data with places and names, comments, thumbnails.

The pixels are not encoded again, so what is left decodes to what the model has seen.
"""

import re
from io import BytesIO
from typing import NamedTuple

from PIL import Image

from model_server.model.image_files import (
    PNG,
    ImageTooLargeError,
    UndecodableImageError,
    UnsupportedImageError,
    png_without_extras,
)
from model_server.model.preprocessing import LARGE, ORIENTATION, UPRIGHT, decode

MAX_PARTS = 4096  # of a file: segments or chunks; each is some work in Python, and cameras make some dozens
TURNED = ("JPEG", "WEBP", "TIFF")  # a PNG is decoded without its EXIF data, and Pillow would decode it to find them
UNKNOWN = ".bin"  # suffix of bytes whose container cannot be parsed
_JPEG = b"\xff\xd8\xff"
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
        ImageTooLargeError: it has too many parts; or it is of another format and has over 4 megapixels: a PNG of these
            would take a second.
    """
    if data.startswith(_JPEG):
        return Stripped(_jpeg(data), ".jpg")
    if data.startswith(PNG):
        return Stripped(png_without_extras(data, MAX_PARTS), ".png")
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
    """Return how an image that was decoded was turned by its EXIF data, 1 to 8; 1 (upright) where they say nothing.

    No pixels are decoded for it.
    """
    try:
        return int(Image.open(BytesIO(data), formats=TURNED).getexif().get(ORIENTATION, UPRIGHT))
    except Exception:  # decoders raise nearly any exception on hostile bytes
        return UPRIGHT


def _jpeg(data: bytes) -> bytes:
    """Keep tables, frames and scans, up to the end of the image: some phones append a film to it."""
    view, kept = memoryview(data), bytearray(data[:2])
    position = 2
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, position)
        if found is None:
            return bytes(kept)
        begin = found.start()
        marker = data[begin + 1]
        if marker == _END_OF_IMAGE:
            kept += view[begin : begin + 2]
            return bytes(kept)
        if marker in _BARE:
            position = begin + 2
            continue
        length = int.from_bytes(data[begin + 2 : begin + 4], "big")
        position = begin + 2 + max(2, length)
        if marker in _OF_PIXELS:
            kept += view[begin:position]
        elif (marker, data[begin + 4 : begin + 9]) == _JFIF and length >= 16:
            kept += data[begin : begin + 2] + b"\0\x10" + data[begin + 4 : begin + 16] + b"\0\0"  # no thumbnail
        elif (marker, data[begin + 4 : begin + 9]) == _ADOBE and length >= 14:
            kept += data[begin : begin + 2] + b"\0\x0e" + data[begin + 4 : begin + 16]
        if marker == _START_OF_SCAN:
            following = _MARKER.search(data, position)
            end = len(data) if following is None else following.start()
            kept += view[position:end]
            position = end
    raise ImageTooLargeError(f"a JPEG of more than {MAX_PARTS} segments")


def _webp(data: bytes) -> bytes:
    view, kept = memoryview(data), bytearray()
    position, end = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    for _ in range(MAX_PARTS):
        if position >= end:
            return b"RIFF" + (4 + len(kept)).to_bytes(4, "little") + b"WEBP" + kept
        kind = data[position : position + 4]
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        following = position + 8 + size + size % 2
        if kind in _WEBP_OF_PIXELS:
            flags = len(kept) + 8
            kept += view[position : min(following, end)]
            if kind == b"VP8X" and flags < len(kept):
                kept[flags] &= ~_WEBP_EXTRAS & 0xFF
        position = following
    raise ImageTooLargeError(f"a WebP of more than {MAX_PARTS} chunks")
