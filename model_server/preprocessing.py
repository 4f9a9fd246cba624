"""From the bytes of an image to the square of pixels that the model sees."""

from io import BytesIO
from typing import Tuple

from PIL import Image

# The formats people send. The rest of Pillow's decoders would only widen what an attacker can reach.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# `decode` has a limit of its own, checked before any pixel is decoded; Pillow's is for the whole process.
Image.MAX_IMAGE_PIXELS = None


class UndecodableImageError(ValueError):
    """Bytes that are not an image, or only a part of one."""


class ImageTooLargeError(ValueError):
    """An image of more pixels than allowed; the message gives its size and the limit."""


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """Decode an image of any mode to RGB. The first frame counts, transparency is dropped.

    Args:
        data: a whole JPEG, PNG, WebP, GIF, BMP or TIFF file.
        max_pixels: the largest width × height accepted.

    Raises:
        ImageTooLargeError: the image has more than `max_pixels`; nothing was decoded.
        UndecodableImageError: the data are no image, or are truncated or corrupt.
    """
    try:
        image: Image.Image = Image.open(BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height <= max_pixels:
            return _to_rgb(image)
    except Exception as error:  # on hostile bytes decoders raise nearly anything, and all of it means this
        raise UndecodableImageError(str(error)) from error
    raise ImageTooLargeError(f"{width}×{height} pixels, at most {max_pixels} are accepted")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # 16-bit grey: `convert` would clip everything above 255 to white.
        image = image.point(lambda value: value * (1 / 256)).convert("L")
    if image.mode == "RGB":
        image.load()
        return image
    return image.convert("RGB")


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
