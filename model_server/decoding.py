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
    content_type = upload.content_type.lower()
    if not content_type.startswith("image/") and content_type not in UNTYPED:
        raise _rejected(upload, 400, Reason.NOT_AN_IMAGE, "is not an image")
    if not upload.data:
        raise _rejected(upload, 400, Reason.EMPTY, "is empty")
    timings.size = len(upload.data)
    try:
        return open_image(upload.data, max_pixels)
    except ImageTooLargeError as error:
        raise _rejected(upload, 413, Reason.IMAGE_TOO_LARGE, f"is too large: {error}") from error
    except UnsupportedImageError as error:
        raise _rejected(upload, 415, Reason.UNSUPPORTED_MEDIA_TYPE, f"is {error}") from error
    except UndecodableImageError as error:
        raise _undecodable(upload) from error


def load_upload(image: Image.Image, upload: Upload, timings: RequestTimings, decoding: Decoding) -> Image.Image:
    """Decode an opened upload and record its pixels: the original ones, also where the decoding reduces the scale.

    Raises:
        RejectedInputError: it cannot be decoded.
    """
    pixels = image.width * image.height
    try:
        image = load(image, decoding)
    except UndecodableImageError as error:
        raise _undecodable(upload) from error
    timings.pixels = pixels
    return image


def _rejected(upload: Upload, status: int, reason: Reason, problem: str) -> RejectedInputError:
    name = "The body" if upload.filename is None else f"File '{upload.filename}'"
    error = RejectedInputError(status, reason, f"{name} {problem}.")
    error.nameless = f"The image {problem}."
    return error


def _undecodable(upload: Upload) -> RejectedInputError:
    problem = "cannot be decoded as an image: damaged, or of an unknown format"
    return _rejected(upload, 400, Reason.UNDECODABLE, problem)
