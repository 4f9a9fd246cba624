"""From the bytes of an image to the square of pixels that the model sees."""

import ctypes
import math
from io import BytesIO
from typing import Any, Optional, Tuple

from PIL import Image

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

LARGE = 4_000_000  # pixels; Pillow keeps a larger image in several blocks of memory

# `open_image` checks a limit of its own before any pixel is decoded; Pillow's limit is global.
Image.MAX_IMAGE_PIXELS = None


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """Decode an image of any mode to RGB. The first frame counts, transparency is dropped.

    Args:
        data: a whole JPEG, PNG, WebP, GIF, BMP or TIFF file.
        max_pixels: the largest width × height accepted.

    Raises:
        ImageTooLargeError: the image has more than `max_pixels`; nothing was decoded.
        UndecodableImageError: the data are no image, or are truncated or corrupt.
        UnsupportedImageError: the image is of a kind that is not accepted.
    """
    return load(open_image(data, max_pixels))


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


def load(image: Image.Image, fast_for: Optional[int] = None) -> Image.Image:
    """Decode an opened image to RGB.

    Args:
        image: from `open_image`.
        fast_for: the size that the image will be scaled to; a JPEG that is much larger is decoded at 1/2, 1/4 or 1/8
            of its width and height. That saves most of the work, and comes close to what scaling all pixels would
            give: the shorter side keeps at least 1.5 times this size. None: every pixel is decoded.

    Raises:
        UndecodableImageError: the data are truncated or corrupt.
    """
    try:
        if fast_for is not None:
            enough = math.ceil(OVERSAMPLING * fast_for)
            image.draft(None, (enough, enough))
        return _to_rgb(image)
    except Exception as error:
        raise UndecodableImageError(str(error)) from error


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

    The memory is Pillow's own. The pixels are copied only if Pillow keeps them in several blocks (above 4 megapixels),
    or is older than 11.2.
    """
    try:
        _, capsule = image.__arrow_c_array__()
    except (AttributeError, ValueError):
        return bytearray(image.tobytes("raw", "RGBX"))
    pixels = _ArrowArray.from_address(_pointer_of(capsule, b"arrow_array")).children[0].contents
    buffer: Any = (ctypes.c_uint8 * (4 * image.width * image.height)).from_address(pixels.buffers[1])
    buffer.owner = capsule  # the capsule keeps Pillow's memory alive
    return buffer


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to `size` and cut the central square, in one pass.

    Gives the pixels of torchvision's `Resize(size)` (bilinear, antialiased) and `CenterCrop(size)`,
    without computing those that the crop throws away.

    Args:
        image: RGB, at least 1×1 pixels.
        size: side of the square, in pixels.

    Returns:
        An RGB image of size × size pixels.
    """
    width, height = image.size
    scaled_width, scaled_height, left, top = scale_and_crop(width, height, size)
    x, y = width / scaled_width, height / scaled_height
    box = (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height))
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def scale_and_crop(width: int, height: int, size: int) -> Tuple[int, int, int, int]:
    """Return the width and height of the whole image scaled, and the left and top of the square in it, in pixels."""
    short = min(width, height)
    # torchvision's rounding: the longer side is truncated, the crop's corner rounded half to even.
    scaled_width, scaled_height = size * width // short, size * height // short
    return scaled_width, scaled_height, round((scaled_width - size) / 2), round((scaled_height - size) / 2)
