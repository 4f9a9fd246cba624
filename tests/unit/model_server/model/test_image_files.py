import io
import struct
import zlib
from typing import Callable, Dict

import pytest
from PIL import Image

from model_server.model.image_files import MAX_SCANS, ImageTooLargeError, UndecodableImageError, count_scans
from model_server.model.preprocessing import decode, open_image

Encode = Callable[..., bytes]
LIMIT = 50_000_000


def progressive(side: int, copies: int) -> bytes:
    """Return a progressive JPEG whose last scan comes `copies` times more."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * copies + data[-2:]


def tiled(side: int, tile: int) -> bytes:
    """Return a TIFF of side × side pixels in one tile of tile × tile, which is all zeros."""
    compressor = zlib.compressobj(9)
    pixels = b"".join(compressor.compress(bytes(tile * 3)) for _ in range(tile)) + compressor.flush()
    shorts: Dict[int, int] = {259: 8, 262: 2, 277: 3}
    longs: Dict[int, int] = {256: side, 257: side, 322: tile, 323: tile, 325: len(pixels)}
    count = len(shorts) + len(longs) + 2
    base = 8 + 2 + 12 * count + 4
    rows = {tag: struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in shorts.items()}
    rows.update({tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in longs.items()})
    rows[258] = struct.pack("<HHII", 258, 3, 3, base)
    rows[324] = struct.pack("<HHII", 324, 4, 1, base + 6)
    directory = struct.pack("<H", count) + b"".join(rows[tag] for tag in sorted(rows)) + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<HHH", 8, 8, 8) + pixels


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 100, "optimize": True}])
def test_scans_are_counted(encode: Encode, options: Dict[str, bool]) -> None:
    data = encode((300, 200), **options)
    assert count_scans(data) == (10 if "progressive" in options else 1)
    assert count_scans(data[:200]) <= count_scans(data)


def test_scans_within_a_thumbnail_do_not_count(encode: Encode) -> None:
    data = encode()
    thumbnail = b"\xff\xda" * 500
    assert count_scans(data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail + data[2:]) == 1


def test_what_follows_the_only_scan_is_not_decoded(encode: Encode) -> None:
    data = encode((300, 200))
    scan = data[data.rindex(b"\xff\xda") : -2]
    longer = data[:-2] + 100 * scan + data[-2:]
    assert count_scans(longer) == 1
    with pytest.raises(UndecodableImageError):  # the decoder ends after the first one
        decode(longer, LIMIT)


def test_components_in_scans_of_their_own_are_counted(encode: Encode) -> None:
    data = bytearray(encode((300, 200)))
    data[data.rindex(b"\xff\xda") + 4] = 1  # the scan says that it has one component
    assert count_scans(bytes(data[:-2] + data[data.rindex(b"\xff\xda") :])) == 2


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded() -> None:
    few, many = progressive(500, 10), progressive(500, 2600)
    assert decode(few, LIMIT).size == (500, 500)
    with pytest.raises(ImageTooLargeError, match=f"^a JPEG of [0-9]+ scans, at most {MAX_SCANS} are accepted$"):
        open_image(many, LIMIT)


def test_a_tiff_of_huge_tiles_is_refused_before_it_is_decoded() -> None:
    assert decode(tiled(200, 256), LIMIT).size == (200, 200)
    with pytest.raises(ImageTooLargeError, match=r"^its tiles have 16000000 pixels, but the whole image has only 256$"):
        open_image(tiled(16, 4000), LIMIT)


def test_memory_is_bounded_by_kind(encode: Encode) -> None:
    open_image(encode((7000, 7000), quality=5), LIMIT)
    jpeg = {"progressive": True, "quality": 5}
    for mode, kind, options in (("RGBA", "PNG", {}), ("I;16", "PNG", {}), ("RGB", "WEBP", {}), ("RGB", "JPEG", jpeg)):
        with pytest.raises(ImageTooLargeError, match=r"^7000×7000 pixels, at most [0-9]+ are accepted of this kind$"):
            open_image(encode((7000, 7000), mode=mode, kind=kind, **options), LIMIT)
