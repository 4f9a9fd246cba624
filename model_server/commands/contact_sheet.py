"""A contact sheet: one picture of many samples, each with what was answered."""

from typing import List, Optional, Sequence

from PIL import Image, ImageDraw, ImageFont

from model_server.commands.images import MAX_PIXELS
from model_server.metrics.samples import SampleReason
from model_server.model.image_files import ImageTooLargeError, UndecodableImageError, UnsupportedImageError
from model_server.model.preprocessing import Decoding, decode
from model_server.server.ring import Sample

NEWEST = 120  # of each reason; a picture of all could be too large to open
COLUMNS = 10
SIDE, LINE, GAP = 150, 14, 8  # pixels: of a thumbnail, of a line of text, between two
LINES = 3  # below a thumbnail
LETTERS = 24  # in a line
SHORT = 8  # letters of a sample's name, its last ones
WHITE, GREY, BLACK = (255, 255, 255), (200, 200, 200), (0, 0, 0)
# EXIF's orientation → what turns the picture upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def draw_sheet(samples: Sequence[Sample]) -> Image.Image:
    """Draw the newest samples of each reason, newest first, below the reason's name and number.

    Args:
        samples: for each reason the oldest first.
    """
    groups = [[sample for sample in samples if sample.reason is reason] for reason in SampleReason]
    height = GAP + sum(_height(len(group)) for group in groups if group)
    sheet = Image.new("RGB", (GAP + COLUMNS * (SIDE + GAP), height), WHITE)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default()
    top = GAP
    for group in groups:
        if not group:
            continue
        shown = group[: -NEWEST - 1 : -1]
        title = f"{group[0].reason.value}: {len(group)}"
        pen.text((GAP, top), title if len(shown) == len(group) else f"{title}, the newest {NEWEST}", BLACK, font)
        for number, sample in enumerate(shown):
            row, column = divmod(number, COLUMNS)
            left, upper = GAP + column * (SIDE + GAP), top + LINE + GAP + row * (SIDE + LINES * LINE + GAP)
            thumbnail = _thumbnail(sample)
            if thumbnail is None:
                pen.rectangle((left, upper, left + SIDE - 1, upper + SIDE - 1), GREY)
                pen.text((left + GAP, upper + GAP), "no image", BLACK, font)
            else:
                sheet.paste(thumbnail, (left + (SIDE - thumbnail.width) // 2, upper + (SIDE - thumbnail.height) // 2))
            for line, text in enumerate(_caption(sample)):
                pen.text((left, upper + SIDE + line * LINE), text, BLACK, font)
        top += _height(len(group))
    return sheet


def _height(count: int) -> int:
    rows = -(-min(count, NEWEST) // COLUMNS)
    return LINE + GAP + rows * (SIDE + LINES * LINE + GAP)


def _caption(sample: Sample) -> List[str]:
    answer = sample.answer
    confidence = answer.get("confidence")
    said = str(answer.get("class", answer.get("rejected", "")))
    if confidence is not None:
        said = f"{said[: LETTERS - 6]} {confidence:.2f}"
    why = ", ".join(answer.get("outlying", ())) or sample.reason.value
    lines = (said, why, sample.name[-SHORT:])  # by the last, people find its files
    # The font that comes with Pillow may have Latin letters alone.
    return [line[:LETTERS].encode("latin-1", "replace").decode("latin-1") for line in lines]


def _thumbnail(sample: Sample) -> Optional[Image.Image]:
    try:
        image = decode(sample.image.read_bytes(), MAX_PIXELS, Decoding(fast_for=SIDE))
    except (OSError, ImageTooLargeError, UndecodableImageError, UnsupportedImageError):
        return None
    turn = _TURNS.get(sample.answer.get("orientation", 1))
    image.thumbnail((SIDE, SIDE))
    return image if turn is None else image.transpose(turn)
