"""What an image file tells before its pixels are decoded: its format, and the work that decoding it would be."""

import re
from typing import Any, Optional

from PIL import Image

MAX_BYTES = 240_000_000  # of memory for the pixels while they are decoded
MAX_SCANS = 40  # of a JPEG; encoders make about 10
MIN_TILE = 1 << 20  # pixels of a TIFF's tile that is accepted whatever the size of the image

# What may come up in the place of a format that is accepted.
_SIGNATURES = (
    ("AVIF", rb"....ftyp(avif|avis)"),
    ("HEIC", rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)"),
    ("JPEG XL", rb"\xff\x0a|....JXL "),
    ("JPEG 2000", rb"....jP  |\xff\x4f\xff\x51"),
    ("PDF", rb"%PDF"),
    ("SVG", rb"\s*(<\?xml|<svg)"),
    ("ICO", rb"\x00\x00\x01\x00"),
    ("PSD", rb"8BPS"),
)
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # of a JPEG, but for those within a scan
_SEQUENTIAL = frozenset({0xC0, 0xC1})  # the marker of a frame, with the number of its components 9 bytes on
_START_OF_SCAN = 0xDA
_END_OF_IMAGE = 0xD9
PNG = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_BITS_PER_SAMPLE, _TILE_WIDTH, _TILE_LENGTH = 258, 322, 323  # tags of a TIFF


class UndecodableImageError(ValueError):
    """Bytes that are not an image, or only a part of one."""


class ImageTooLargeError(ValueError):
    """An image of more pixels or more work than allowed; the message gives its size and the limit."""


class UnsupportedImageError(ValueError):
    """An image of a kind that is not accepted; the message says which, as a part of a sentence."""


def known_format(data: bytes) -> Optional[str]:
    """Name the format of an image file that is known, but not accepted."""
    for name, signature in _SIGNATURES:
        if re.match(signature, data[:64], re.DOTALL):
            return name
    return None


def png_without_extras(data: bytes, max_chunks: Optional[int] = None) -> bytes:
    """Return a PNG with only the chunks that its pixels need; other files, and one without extras, as they are.

    Pillow refuses a file for a damaged or a large chunk of text, which browsers do not look at.

    Raises:
        ImageTooLargeError: it has more than `max_chunks`; the smallest takes 12 bytes, and each some work.
    """
    if not data.startswith(PNG):
        return data
    view, kept = memoryview(data), bytearray()
    begin, position, chunks = 0, len(PNG), 0  # what lies between the two is to be kept
    while position < len(data):
        chunks += 1
        if max_chunks is not None and chunks > max_chunks:
            raise ImageTooLargeError(f"a PNG of more than {max_chunks} chunks")
        end = position + 12 + int.from_bytes(view[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if kind not in _PIXEL_CHUNKS:
            kept += view[begin:position]
            begin = end
        position = end
        if kind == b"IEND":
            break  # what follows is no part of the picture
    if begin == 0 and position >= len(data):
        return data
    kept += view[begin:position]
    return bytes(kept)


def check_work(image: Image.Image, data: bytes) -> None:
    """Make sure that decoding an opened image takes no more time and memory than its size promises.

    Raises:
        ImageTooLargeError: it would take too much.
        UnsupportedImageError: its pixels have more than 16 bits a channel: their range is not known.
    """
    details: Any = image
    tags = details.tag_v2 if image.format == "TIFF" else {}
    if image.mode == "F" or max(tags.get(_BITS_PER_SAMPLE, (8,))) > 16:
        raise UnsupportedImageError("of 32 bits a channel, but at most 16 are accepted")
    pixels = image.width * image.height
    tile = tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_LENGTH, 0)
    if tile > max(MIN_TILE, 4 * pixels):
        raise ImageTooLargeError(f"its tiles have {tile} pixels, but the whole image has only {pixels}")
    bytes_per_pixel = 4 if image.mode == "RGB" else 8  # others are converted, and are there twice meanwhile
    if image.format == "WEBP" or image.mode.startswith("I"):  # several copies; and WebP is the slowest
        bytes_per_pixel = 16
    if image.format == "JPEG":
        scans = count_scans(data)
        if scans > MAX_SCANS:
            raise ImageTooLargeError(f"a JPEG of {scans} scans, at most {MAX_SCANS} are accepted")
        if scans > 1:  # all coefficients are kept until the last scan, two bytes each
            bytes_per_pixel += 2 * len(image.getbands())
    if bytes_per_pixel * pixels > MAX_BYTES:
        most = MAX_BYTES // bytes_per_pixel
        raise ImageTooLargeError(f"{image.width}×{image.height} pixels, at most {most} are accepted of this kind")


def count_scans(data: bytes) -> int:
    """Return the number of scans of a JPEG; a progressive one has several.

    A sequential one whose first scan has all components has no other: decoders end there, and so does the search.
    """
    scans, position, components = 0, 2, b""
    while True:
        found = _MARKER.search(data, position)
        if found is None or data[found.start() + 1] == _END_OF_IMAGE:
            return scans
        position = found.start()
        marker = data[position + 1]
        if marker in _SEQUENTIAL:
            components = data[position + 9 : position + 10]
        elif marker == _START_OF_SCAN:
            scans += 1
            if scans == 1 and data[position + 4 : position + 5] == components:
                return scans
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        position += 2 + max(2, length)  # the segment; after that of a scan come its data, without markers
