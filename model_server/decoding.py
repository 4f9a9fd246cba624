"""From an upload to an image, and the answers to what is none."""

from PIL import Image

from model_server.metrics.predictions import Reason, RequestTimings
from model_server.model.image_files import ImageTooLargeError, UndecodableImageError, UnsupportedImageError
from model_server.model.preprocessing import Decoding, load, open_image
from model_server.upload import UNTYPED, RejectedInputError, Upload


def open_upload(upload: Upload, timings: RequestTimings, max_pixels: int) -> Image.Image:
    """Read the size of an uploaded image and record the size of its file.

    Raises:
        RejectedInputError: it is no image, or one that is too large or of a kind that is not accepted.
    """
    name = _name_of(upload)
    content_type = upload.content_type.lower()
    if not content_type.startswith("image/") and content_type not in UNTYPED:
        raise RejectedInputError(400, Reason.NOT_AN_IMAGE, f"{name} is not an image.")
    if not upload.data:
        raise RejectedInputError(400, Reason.EMPTY, f"{name} is empty.")
    timings.size = len(upload.data)
    try:
        return open_image(upload.data, max_pixels)
    except ImageTooLargeError as error:
        raise RejectedInputError(413, Reason.IMAGE_TOO_LARGE, f"{name} is too large: {error}.") from error
    except UnsupportedImageError as error:
        raise RejectedInputError(415, Reason.UNSUPPORTED_MEDIA_TYPE, f"{name} is {error}.") from error
    except UndecodableImageError as error:
        raise _undecodable(name) from error


def load_upload(image: Image.Image, upload: Upload, timings: RequestTimings, decoding: Decoding) -> Image.Image:
    """Decode an opened upload and record its pixels: the original ones, also where the decoding reduces the scale.

    Raises:
        RejectedInputError: it cannot be decoded.
    """
    pixels = image.width * image.height
    try:
        image = load(image, decoding)
    except UndecodableImageError as error:
        raise _undecodable(_name_of(upload)) from error
    timings.pixels = pixels
    return image


def _name_of(upload: Upload) -> str:
    return "The body" if upload.filename is None else f"File '{upload.filename}'"


def _undecodable(name: str) -> RejectedInputError:
    problem = "damaged, or of an unknown format"
    return RejectedInputError(400, Reason.UNDECODABLE, f"{name} cannot be decoded as an image: {problem}.")
