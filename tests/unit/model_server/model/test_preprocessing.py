import contextlib
import gc
import io
import random
import struct
import zlib
from resource import RUSAGE_SELF, getrusage
from typing import Any, Callable, Dict, Optional

import pytest
from PIL import Image, ImageChops

from model_server.model.image_files import ImageTooLargeError, UndecodableImageError, UnsupportedImageError
from model_server.model.preprocessing import (
    Decoding,
    Scaling,
    decode,
    load,
    open_image,
    resize_and_crop,
    rgbx,
)

Encode = Callable[..., bytes]
LIMIT = 1_000_000


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats(encode: Encode, kind: str) -> None:
    image = decode(encode((120, 80), kind=kind), LIMIT)
    assert (image.mode, image.size) == ("RGB", (120, 80))


MODES = "CMYK JPEG, L JPEG, YCbCr JPEG, P PNG, LA PNG, RGBA PNG, 1 PNG, I;16 PNG, I;16 TIFF, P GIF"


@pytest.mark.parametrize("mode_and_kind", MODES.split(", "))
def test_modes_become_rgb(encode: Encode, mode_and_kind: str) -> None:
    mode, kind = mode_and_kind.split()
    image = decode(encode((120, 80), mode=mode, kind=kind), LIMIT)
    assert (image.mode, image.size) == ("RGB", (120, 80))
    assert len({image.getpixel((60, row)) for row in (5, 75)}) == 2, "the tones are still there"


def test_16_bit_grey_keeps_its_tones(encode: Encode) -> None:
    middle = decode(encode((100, 100), mode="I;16", kind="PNG"), LIMIT).getpixel((50, 50))
    assert isinstance(middle, tuple)
    assert all(abs(part - 128) < 4 for part in middle)


def test_byte_order_makes_no_difference(encode: Encode) -> None:
    pixels = Image.linear_gradient("L").convert("I").point(lambda value: value * 257).convert("I;16")
    buffer = io.BytesIO()
    Image.frombytes("I;16B", pixels.size, swapped(pixels.tobytes())).save(buffer, "TIFF")
    one, other = decode(buffer.getvalue(), LIMIT), decode(encode((256, 256), mode="I;16", kind="TIFF"), LIMIT)
    assert one.tobytes() == other.tobytes()


def swapped(words: bytes) -> bytes:
    return b"".join(words[i : i + 2][::-1] for i in range(0, len(words), 2))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_values_of_32_bits_are_refused(encode: Encode, mode: str) -> None:
    with pytest.raises(UnsupportedImageError, match=r"^of 32 bits a channel, but at most 16 are accepted$"):
        decode(encode(mode=mode, kind="TIFF"), LIMIT)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x1cftypheic" + bytes(40), "HEIC"),
        (b"\0\0\0\x1cftypavif" + bytes(40), "AVIF"),
        (b"%PDF-1.7\n" + bytes(40), "PDF"),
        (b'<?xml version="1.0"?><svg/>', "SVG"),
        (b"\xff\x0a" + bytes(40), "JPEG XL"),
    ],
)
def test_a_format_that_is_not_accepted_is_named(data: bytes, name: str) -> None:
    accepted = "JPEG, PNG, WEBP, GIF, BMP, TIFF"
    with pytest.raises(UnsupportedImageError, match=f"^of the format {name}, but {accepted} are accepted$"):
        decode(data, LIMIT)


def chunk(kind: bytes, data: bytes, checksum: Optional[int] = None) -> bytes:
    found = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", found)


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2_000_000))),
        chunk(b"pHYs", bytes(9), checksum=1),
        chunk(b"iCCP", b"x\0\0" + b"damaged"),
    ],
)
def test_a_png_is_decoded_whatever_its_extras_are(encode: Encode, extra: bytes) -> None:
    plain = encode(kind="PNG")
    after_head = 8 + 25
    for position in (after_head, plain.index(b"IEND") - 4):
        image = decode(plain[:position] + extra + plain[position:], LIMIT)
        assert image.tobytes() == decode(plain, LIMIT).tobytes()


@pytest.mark.parametrize("options", [{"progressive": True}, {"quality": 5}, {"subsampling": 2}])
def test_kinds_of_jpeg(encode: Encode, options: Dict[str, Any]) -> None:
    assert decode(encode((120, 80), **options), LIMIT).size == (120, 80)


@pytest.mark.parametrize(
    "data", [b"", b"x", b"no image", b"\xff\xd8\xff", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(100), b"BM" + bytes(60)]
)
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(UndecodableImageError):
        decode(data, LIMIT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated_files_are_refused(encode: Encode, kind: str) -> None:
    whole = encode((400, 300), kind=kind)
    with pytest.raises(UndecodableImageError):
        decode(whole[: len(whole) // 2], LIMIT)


def test_damaged_files_are_decoded_or_refused(encode: Encode) -> None:
    rng = random.Random(0)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        whole = encode((60, 40), kind=kind)
        for _ in range(40):
            damaged = bytearray(whole)
            for _ in range(rng.randrange(1, 8)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            with contextlib.suppress(UndecodableImageError, ImageTooLargeError):
                assert decode(bytes(damaged), LIMIT).mode == "RGB"


def test_a_bomb_is_refused_before_it_is_decoded(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encode((3000, 3000), mode="L", kind="PNG")
    assert len(bomb) < 100_000

    def explode(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", explode)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.convert", explode)
    with pytest.raises(ImageTooLargeError, match=r"^3000×3000 pixels, at most 1000000 are accepted$"):
        decode(bomb, LIMIT)


def test_the_limit_itself_is_accepted(encode: Encode) -> None:
    assert decode(encode((100, 100)), 100 * 100).size == (100, 100)


def reference(image: Image.Image, scaling: Scaling) -> Image.Image:
    """What torchvision does to an image of Pillow: Resize, then CenterCrop."""
    size, resize = scaling.size, scaling.resize or scaling.size
    width, height = image.size
    if isinstance(resize, int):
        scaled = (resize, int(resize * height / width)) if width <= height else (int(resize * width / height), resize)
    else:
        scaled = (resize[1], resize[0])
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[scaling.interpolation]
    resized = image.resize(scaled, method)
    left, top = round((scaled[0] - size) / 2.0), round((scaled[1] - size) / 2.0)
    return resized.crop((left, top, left + size, top + size))


SIZES = "640×480 480×640 150×150 151×150 150×301 100×100 75×149 1023×767 1500×90 31×997"


def noise(width: int, height: int) -> Image.Image:
    count = 3 * width * height
    chance = random.Random(f"{width}×{height}")
    return Image.frombytes("RGB", (width, height), chance.getrandbits(8 * count).to_bytes(count, "big"))


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pixels, in levels."""
    return max(int(high) for _, high in ImageChops.difference(one, other).getextrema())  # type: ignore[misc]


SCALINGS = [
    Scaling(150),
    Scaling(150, 170),
    Scaling(150, (150, 150)),
    Scaling(150, (180, 230)),
    Scaling(150, 170, "bicubic"),
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("shape", SIZES.split())
def test_a_square_has_the_pixels_of_resize_and_crop(shape: str, scaling: Scaling) -> None:
    width, height = (int(side) for side in shape.split("×"))
    image = noise(width, height)
    got = resize_and_crop(image, scaling)
    assert got.size == (150, 150)
    assert difference(got, reference(image, scaling)) <= (2 if scaling.resize else 1)


def test_without_antialias_four_pixels_count() -> None:
    """Of 8×8 pixels scaled to 2×2, those around the centres of the quarters."""
    image = Image.new("RGB", (16, 8))
    for x, y in ((5, 1), (5, 2), (6, 1), (6, 2)):  # around (6, 2): the centre of the first quarter of the square
        image.putpixel((x, y), (200, 100, 40))
    sampled = resize_and_crop(image, Scaling(2, antialias=False))
    assert [sampled.getpixel((x, y)) for y in (0, 1) for x in (0, 1)] == [(200, 100, 40), *[(0, 0, 0)] * 3]
    assert resize_and_crop(image, Scaling(2)).getpixel((0, 0)) != (200, 100, 40)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_exif_data_say_if_the_model_wants_it(orientation: int) -> None:
    image = Image.new("RGB", (64, 32), "white")
    image.paste("red", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif, quality=95, subsampling=0)

    as_it_is, turned = (decode(file.getvalue(), LIMIT, Decoding(exif_orientation=wanted)) for wanted in (False, True))

    assert as_it_is.size == (64, 32)
    assert turned.size == ((64, 32) if orientation < 5 else (32, 64))
    corners = {1: (0, 0), 2: (-1, 0), 3: (-1, -1), 4: (0, -1), 5: (0, 0), 6: (-1, 0), 7: (-1, -1), 8: (0, -1)}
    right, low = corners[orientation]
    red, green, _ = turned.getpixel((right % turned.width, low % turned.height))  # type: ignore[misc]
    assert red > 200
    assert green < 100


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"nonsense"])
def test_exif_data_that_cannot_be_read_say_nothing(exif: bytes) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 32)).save(file, "JPEG", exif=exif)

    assert decode(file.getvalue(), LIMIT, Decoding(exif_orientation=True)).size == (64, 32)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3), (1, 500_000), (500_000, 1), (3, 200_000)])
def test_extreme_shapes(size: Any, interpolation: str) -> None:
    image = Image.new("RGB", size, (1, 2, 3))
    before = getrusage(RUSAGE_SELF).ru_maxrss
    assert resize_and_crop(image, Scaling(150, 170, interpolation)).getpixel((75, 75)) == (1, 2, 3)
    assert getrusage(RUSAGE_SELF).ru_maxrss - before < 50_000, "kilobytes"


SCALED = [((640, 480), (320, 240)), ((449, 600), (449, 600)), ((450, 600), (225, 300)), ((4000, 900), (1000, 225))]


@pytest.mark.parametrize(("size", "decoded"), [*SCALED, ((1804, 1803), (226, 226)), ((100, 90), (100, 90))])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_fast_decoding_leaves_one_and_a_half_times_the_size(encode: Encode, mode: str, size: Any, decoded: Any) -> None:
    image = load(open_image(encode(size, mode=mode), 10_000_000), Decoding(150))
    assert (image.mode, image.size) == ("RGB", decoded)


def test_what_is_no_jpeg_is_decoded_in_full(encode: Encode) -> None:
    for kind in ("PNG", "WEBP", "GIF", "BMP", "TIFF"):
        assert load(open_image(encode((900, 700), kind=kind), LIMIT), Decoding(150)).size == (900, 700)


def test_truncated_files_are_refused_by_fast_decoding(encode: Encode) -> None:
    whole = encode((800, 600), progressive=True)
    with pytest.raises(UndecodableImageError):
        load(open_image(whole[: len(whole) // 2], LIMIT), Decoding(150))


@pytest.mark.parametrize("size", [(7, 5), (640, 480), (2100, 2100)])
def test_pixels_of_four_bytes(size: Any) -> None:
    noise = Image.effect_noise(size, 80)
    image = Image.merge("RGB", (noise, noise.rotate(180), Image.linear_gradient("L").resize(size)))
    expected = image.tobytes()

    pixels = rgbx(image)
    del image
    gc.collect()

    got = bytes(pixels)
    assert (got[0::4], got[1::4], got[2::4]) == (expected[0::3], expected[1::3], expected[2::3])
