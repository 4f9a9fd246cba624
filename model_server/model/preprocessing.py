"""From the bytes of an image to the square of pixels that the model sees."""

import ctypes
import math
from io import BytesIO
from typing import Any, NamedTuple, Optional, Tuple, Union

from PIL import Image, ImageOps

from model_server.model.bundle import Manifest
from model_server.model.image_files import (
    ImageTooLargeError,
    UndecodableImageError,
    UnsupportedImageError,
    check_work,
    known_format,
    png_without_extras,
)

# The formats that clients send. Each further decoder of Pillow would be one more target for attackers.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# With 1.5 the confidences of the demo bundle move by 0.01 at most, with 1 by 0.05; 2 is not closer by much.
OVERSAMPLING = 1.5

ORIENTATION, UPRIGHT = 0x0112, 1  # in EXIF data

LONGEST_STRIP = 20_000  # rows that are scaled in one direction first

LARGE = 4_000_000  # pixels; Pillow keeps a larger image in several blocks of memory

# `open_image` checks a limit of its own before any pixel is decoded; Pillow's limit is global.
Image.MAX_IMAGE_PIXELS = None


class Decoding(NamedTuple):
    """How images are decoded for a model.

    Attributes:
        fast_for: the size that the image will be scaled to; a JPEG that is much larger is decoded at 1/2, 1/4 or 1/8
            of its width and height. That saves most of the work, and comes close to what scaling all pixels would
            give: the shorter side keeps at least 1.5 times this size. None: every pixel is decoded.
        exif_orientation: whether a photo is turned as its EXIF data say.
    """

    fast_for: Optional[int] = None
    exif_orientation: bool = False


class Scaling(NamedTuple):
    """What becomes of a decoded image: it is scaled, and the central square is cut out.

    Attributes:
        size: side of the square, in pixels.
        resize: what the shorter side is scaled to, in pixels, or height and width; None: `size`.
        interpolation: `bilinear` or `bicubic`.
        antialias: whether all pixels count where the image becomes smaller, as they do in Pillow.
    """

    size: int
    resize: Union[int, Tuple[int, int], None] = None
    interpolation: str = "bilinear"
    antialias: bool = True

    def measure(self, width: int, height: int) -> Tuple[int, int, int, int]:
        """Return the width and height of the whole image scaled, and the left and top of the square, in pixels."""
        resize = self.resize or self.size
        if isinstance(resize, int):
            short = min(width, height)
            # torchvision's rounding: the longer side is truncated, the crop's corner rounded half to even.
            scaled_width, scaled_height = resize * width // short, resize * height // short
        else:
            scaled_height, scaled_width = resize
        return (
            scaled_width,
            scaled_height,
            round((scaled_width - self.size) / 2),
            round((scaled_height - self.size) / 2),
        )


def decoding_of(manifest: Manifest, quality: str) -> Decoding:
    """Return how images are decoded for a model; `quality` is `exact` or `fast`, as the server's setting has it."""
    scaled = manifest.resize or manifest.input_size
    longest = scaled if isinstance(scaled, int) else max(scaled)
    return Decoding(longest if quality == "fast" else None, manifest.exif_orientation)


def scaling_of(manifest: Manifest) -> Scaling:
    """Return what becomes of an image for a model."""
    return Scaling(manifest.input_size, manifest.resize, manifest.interpolation, manifest.antialias)


EXACT = Decoding()


def decode(data: bytes, max_pixels: int, decoding: Decoding = EXACT) -> Image.Image:
    """Decode an image of any mode to RGB. The first frame counts, transparency is dropped.

    Args:
        data: a whole JPEG, PNG, WebP, GIF, BMP or TIFF file.
        max_pixels: the largest width × height accepted.
        decoding: how.

    Raises:
        ImageTooLargeError: the image has more than `max_pixels`; nothing was decoded.
        UndecodableImageError: the data are no image, or are truncated or corrupt.
        UnsupportedImageError: the image is of a kind that is not accepted.
    """
    return load(open_image(data, max_pixels), decoding)


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Read the size and the mode of an image; `load` decodes its pixels. Takes and raises what `decode` does.

    What decoding will cost is checked here, before any pixel is decoded.
    """
    image = _opened(data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLargeError(f"{width}×{height} pixels, at most {max_pixels} are accepted")
    check_work(image, data)
    return image


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(png_without_extras(data)), formats=FORMATS)
    except Exception as error:  # decoders raise nearly any exception on hostile bytes
        known = known_format(data)
        if known is not None:
            accepted = ", ".join(FORMATS)
            raise UnsupportedImageError(f"of the format {known}, but {accepted} are accepted") from error
        raise UndecodableImageError(str(error)) from error


def load(image: Image.Image, decoding: Decoding = EXACT) -> Image.Image:
    """Decode an opened image to RGB.

    Args:
        image: from `open_image`.
        decoding: how.

    Raises:
        UndecodableImageError: the data are truncated or corrupt.
    """
    try:
        if decoding.fast_for is not None:
            enough = math.ceil(OVERSAMPLING * decoding.fast_for)
            image.draft(None, (enough, enough))
        if decoding.exif_orientation:
            image.load()
            image = _turned(image)
        return _to_rgb(image)
    except Exception as error:
        raise UndecodableImageError(str(error)) from error


def _turned(image: Image.Image) -> Image.Image:
    try:
        return image if image.getexif().get(ORIENTATION, UPRIGHT) == UPRIGHT else ImageOps.exif_transpose(image)
    except Exception:  # EXIF data that cannot be read say nothing
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # 16-bit grey: `convert` would clip everything above 255 to white. `point` knows the byte order of "I" alone.
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode == "RGB":
        image.load()
        return image
    return image.convert("RGB")


class _ArrowArray(ctypes.Structure):
    """The beginning of an array in Arrow's C data interface: arrow.apache.org/docs/format/CDataInterface.html."""


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def rgbx(image: Image.Image) -> Any:
    """Return a buffer of an RGB image's pixels, row by row, 4 bytes each, the last without a meaning; only to be read.

    The memory is Pillow's own. The pixels are copied only if Pillow keeps them in several blocks (above 4 megapixels).
    """
    found = _exported(image) if hasattr(image, "__arrow_c_array__") else _rows(image)
    if found is None:
        return bytearray(image.tobytes("raw", "RGBX"))
    address, owner = found
    buffer: Any = (ctypes.c_uint8 * (4 * image.width * image.height)).from_address(address)
    buffer.owner = owner  # it keeps Pillow's memory alive
    return buffer


def _exported(image: Image.Image) -> Optional[Tuple[int, Any]]:
    """Return where the pixels of an image are, and what keeps them there; None: in several places."""
    try:
        _, capsule = image.__arrow_c_array__()
    except ValueError:
        return None
    pixels = _ArrowArray.from_address(_pointer_of(capsule, b"arrow_array")).children[0].contents
    return pixels.buffers[1], capsule


def _rows(image: Image.Image) -> Optional[Tuple[int, Any]]:
    """The same for Pillow before 11.2, which has an array of the rows' addresses: CPython 3.8 gets no later one."""
    width, height = image.size
    rows = ctypes.cast(dict(image.im.unsafe_ptrs)["image32"], ctypes.POINTER(ctypes.c_void_p))
    # In a block each row begins where the one before ends.
    is_one_block = width * height <= LARGE and rows[height - 1] - rows[0] == 4 * width * (height - 1)
    return (rows[0], image.im) if is_one_block else None


def resize_and_crop(image: Image.Image, scaling: Scaling) -> Image.Image:
    """Scale an image and cut the central square.

    Gives the pixels of torchvision's `Resize(resize)` and `CenterCrop(size)`, without computing those that the crop
    throws away.

    Args:
        image: RGB, at least 1×1 pixels.
        scaling: to what, and how.

    Returns:
        An RGB image of size × size pixels.
    """
    width, height = image.size
    size = scaling.size
    scaled_width, scaled_height, left, top = scaling.measure(width, height)
    x, y = width / scaled_width, height / scaled_height
    method = Image.Resampling.BICUBIC if scaling.interpolation == "bicubic" else Image.Resampling.BILINEAR
    if not scaling.antialias:
        affine = (x, 0, left * x, 0, y, top * y)
        return image.transform((size, size), Image.Transform.AFFINE, affine, method)
    right, bottom = min((left + size) * x, width), min((top + size) * y, height)
    if (
        method == Image.Resampling.BICUBIC
    ):  # it overshoots, and is clipped after each direction: the horizontal is first
        reach = math.ceil(2 * max(y, 1)) + 1  # rows beside the square that it is made of, too
        first, last = max(0, math.floor(top * y) - reach), min(height, math.ceil(bottom) + reach)
        if last - first > LONGEST_STRIP:  # it would be gigabytes; nobody can tell of such an image
            return image.resize((size, size), method, box=(left * x, top * y, right, bottom))
        image = image.resize((size, last - first), method, box=(left * x, first, right, last))
        return image.resize((size, size), method, box=(0, top * y - first, size, bottom - first))
    return image.resize((size, size), method, box=(left * x, top * y, right, bottom))
