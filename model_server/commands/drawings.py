"""Drawn apples, grapes and lemons: an endless, reproducible supply of labelled images without a download."""

import math
from random import Random
from typing import Callable, Dict, Tuple

from PIL import Image, ImageDraw, ImageFilter

Colour = Tuple[int, int, int]
Box = Tuple[float, float, float, float]


def draw_fruit(name: str, rng: Random, width: int = 192, height: int = 192) -> Image.Image:
    """Draw one fruit at a random place, size, angle and shade, before a random background.

    Args:
        name: one of `FRUITS`.
        rng: the source of all that is random; the same state gives the same picture.
        width: of the picture, in pixels, at least 32.
        height: likewise.

    Returns:
        An RGB image of width × height pixels.

    Raises:
        KeyError: there is no such fruit.
    """
    draw = FRUITS[name]
    side = min(width, height)
    picture = _background(rng, width, height)
    # The fruit is drawn upright on a sheet of its own, then scaled, turned and pasted.
    diameter = round(side * rng.uniform(0.6, 0.9))
    sheet = Image.new("RGBA", (256, 256))
    draw(ImageDraw.Draw(sheet), rng)
    sheet = sheet.resize((diameter, diameter), Image.Resampling.BILINEAR)
    sheet = sheet.rotate(rng.uniform(-40, 40), Image.Resampling.BILINEAR)
    # The middle stays within the central square, the part that the model sees.
    x = width / 2 + rng.uniform(-0.12, 0.12) * side - diameter / 2
    y = height / 2 + rng.uniform(-0.12, 0.12) * side - diameter / 2
    picture.paste(sheet, (round(x), round(y)), sheet)
    return _noise(rng, picture)


def _background(rng: Random, width: int, height: int) -> Image.Image:
    """Fill with a gradient between two muted colours, and lay a few blurred shapes upon it."""
    small = Image.new("RGB", (2, 2))
    base = rng.randrange(60, 230)
    for place in ((0, 0), (0, 1), (1, 0), (1, 1)):
        small.putpixel(place, _shade(rng, (base, base, base), 20))
    picture = small.resize((64, 64), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randrange(4)):
        x, y, w, h = (rng.uniform(-10, 64), rng.uniform(-10, 64), rng.uniform(6, 40), rng.uniform(6, 40))
        colour = _shade(rng, (base, base, base), 35)
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + w, y + h), fill=colour)
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2.5))).resize(
        (width, height), Image.Resampling.BICUBIC
    )


def _apple(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    skin = _shade(rng, rng.choice([(196, 32, 40), (170, 24, 48), (214, 70, 44), (126, 178, 52)]), 22)
    for shift in (-26, 26):  # two lobes and a belly
        draw.ellipse((40 + shift, 58, 216 + shift, 232), fill=skin)
    draw.ellipse((44, 96, 212, 244), fill=skin)
    # The side that saw the sun; on a green apple it is what tells it from a bunch of green grapes.
    draw.ellipse((96, 84, 224, 232), fill=_shade(rng, (200, 48, 36), 22))
    draw.ellipse((108, 48, 148, 78), fill=_darker(skin, 0.6))
    draw.line((128, 68, 128 + rng.uniform(-14, 22), 16), fill=_shade(rng, (92, 62, 34), 15), width=9)
    if rng.random() < 0.7:
        draw.chord((130, 14, 200, 62), 200, 60, fill=_shade(rng, (70, 140, 50), 25))
    _highlight(draw, rng, (58, 92, 104, 140), skin)


def _grapes(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    skin = _shade(rng, rng.choice([(92, 44, 130), (66, 30, 96), (120, 40, 90), (150, 186, 84)]), 22)
    draw.line((128, 50, 128 + rng.uniform(-20, 20), 8), fill=_shade(rng, (100, 80, 44), 15), width=8)
    radius = rng.uniform(22, 28)
    for row, berries in enumerate((4, 5, 4, 3, 2, 1)):
        for berry in range(berries):
            x = 128 + (berry - (berries - 1) / 2) * radius * 1.65 + rng.uniform(-5, 5)
            y = 52 + row * radius * 1.2 + rng.uniform(-5, 5)
            colour = _shade(rng, skin, 18)
            box = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(box, fill=colour, outline=_darker(colour, 0.5), width=4)
            spot = radius * 0.4
            _highlight(draw, rng, (x - spot * 1.4, y - spot * 1.5, x - spot * 0.4, y - spot * 0.5), colour)


def _lemon(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    skin = _shade(rng, rng.choice([(244, 214, 54), (236, 196, 40), (226, 220, 70)]), 18)
    half = rng.uniform(58, 76)
    draw.ellipse((32, 128 - half, 224, 128 + half), fill=skin)
    for tip, sign in ((16, 1), (240, -1)):  # the two ends run out into nubs
        base = tip + sign * 52
        draw.polygon([(tip, 120), (tip, 136), (base, 128 + half * 0.6), (base, 128 - half * 0.6)], fill=skin)
    for _ in range(40):  # pores
        angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.9)
        x, y = 128 + 92 * distance * math.cos(angle), 128 + half * distance * math.sin(angle)
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=_darker(skin, 0.88))
    _highlight(draw, rng, (80, 128 - half * 0.7, 140, 128 - half * 0.3), skin)


FRUITS: Dict[str, Callable[[ImageDraw.ImageDraw, Random], None]] = {"apple": _apple, "grapes": _grapes, "lemon": _lemon}


def _highlight(draw: ImageDraw.ImageDraw, rng: Random, box: Box, skin: Colour) -> None:
    towards_white = rng.uniform(0.25, 0.6)
    draw.ellipse(box, fill=tuple(round(part + (255 - part) * towards_white) for part in skin))


def _shade(rng: Random, colour: Colour, spread: int) -> Colour:
    red, green, blue = (min(255, max(0, part + rng.randint(-spread, spread))) for part in colour)
    return red, green, blue


def _darker(colour: Colour, factor: float) -> Colour:
    red, green, blue = (round(part * factor) for part in colour)
    return red, green, blue


def _noise(rng: Random, picture: Image.Image) -> Image.Image:
    size = 3 * picture.width * picture.height
    grain = Image.frombytes("RGB", picture.size, rng.getrandbits(8 * size).to_bytes(size, "little"))
    return Image.blend(picture, grain, rng.uniform(0.02, 0.08))
