"""What is watched of each request: four measures of the pixels that the model sees, and what the model makes of them.

All are cheap on purpose: the pixels are measured at 900 points at most, whatever the size of the image.
"""

from functools import lru_cache
from math import exp, log, sqrt
from typing import List, Tuple

import torch
from torch import Tensor

from model_server.model.reference import Observation

POINTS = 30  # in each direction

# Rows are taken of a pixel, its right and its lower neighbour, each red, green and blue of 0..255.
LUMA = (0.299 / 255, 0.587 / 255, 0.114 / 255)  # ITU-R BT.601, as Pillow's convert("L")
_NONE = (0.0, 0.0, 0.0)
_TO_RIGHT = tuple(-part for part in LUMA) + LUMA + _NONE
_BELOW = tuple(-part for part in LUMA) + _NONE + LUMA
# Orthonormal axes of the colour space: one grey, two of colour.
_GREY = (sqrt(1 / 3), sqrt(1 / 3), sqrt(1 / 3)) + 2 * _NONE
_RED_GREEN = (sqrt(1 / 2), -sqrt(1 / 2), 0.0) + 2 * _NONE
_YELLOW_BLUE = (sqrt(1 / 6), sqrt(1 / 6), -sqrt(2 / 3)) + 2 * _NONE
_PROJECTION = torch.tensor([LUMA + 2 * _NONE, _TO_RIGHT, _BELOW, _GREY, _RED_GREEN, _YELLOW_BLUE, 3 * _NONE])
_ONE = torch.tensor([6 * [0.0] + [1.0]]).t()  # added to the last row: products with it are sums


def measure(pixels: Tensor) -> Tuple[float, float, float, float]:
    """Measure the pixels of one image.

    Args:
        pixels: float32 of shape (1, 3, H, W), values 0..255, H and W at least 2;
            fastest with the channels last in memory.

    Returns:
        Brightness: mean luma, 0..1.
        Contrast: root-mean-square contrast (Peli, 1990), the standard deviation of luma, 0..0.5.
        Saturation: the sine of the angle between the colours and the grey axis of the RGB cube, root mean square
            weighted by intensity, scaled so that pure red, green or blue has 1 and grey 0. Unlike HSV's it does not
            jump on dark noise; like HSV's it does not change when the image is darkened.
        Sharpness: root-mean-square gradient of luma, forward differences between neighbouring pixels
            (as in Tenengrad, Krotkov 1987, without its smoothing), 0..√2; photographs have 0.02 to 0.15.
    """
    _, _, height, width = pixels.shape
    colours = pixels.permute(0, 2, 3, 1).reshape(-1, 3)
    places = _neighbourhoods(height, width)
    # With cold caches, the number of operations is what counts: all sums of squares are one product.
    projected = torch.addmm(_ONE, _PROJECTION, colours.index_select(0, places).view(-1, 9).t())
    products = projected.mm(projected.t()).tolist()
    luma, right, below, grey, red_green, yellow_blue, points = (row[place] for place, row in enumerate(products))
    brightness = products[0][-1] / points
    contrast = sqrt(max(0.0, luma / points - brightness * brightness))
    colour = red_green + yellow_blue
    saturation = sqrt(1.5 * colour / (colour + grey)) if grey else 0.0
    sharpness = sqrt((right + below) / points)
    return brightness, contrast, saturation, sharpness


def observe(pixels: Tensor, likely_class: str, confidence: float, logits: Tensor, projections: Tensor) -> Observation:
    """Measure a preprocessed image, and join the model's answer to it: the values of `FEATURES`, in their order.

    Energy is the log-sum-exp of the logits (Liu et al., 2020, "Energy-based Out-of-distribution Detection", without its
    sign), margin the difference of the two largest: images of what the model does not know move both, also where
    their pixels look as ever, and where the confidence stays at 1.
    """
    likeliest, second = logits.topk(2).values.tolist()
    # With cold caches, torch's own log-sum-exp would take four times as long for a few numbers.
    energy = likeliest + log(sum(exp(output - likeliest) for output in logits.tolist()))
    numbers = (*measure(pixels), confidence, energy, likeliest - second)
    return (*numbers, likely_class, *projections.tolist())


@lru_cache(maxsize=4)
def _neighbourhoods(height: int, width: int) -> Tensor:
    """Return the places of the points in the flattened image, each with its right and its lower neighbour."""
    rows, columns = _spread(height - 1), _spread(width - 1)
    return torch.tensor(
        [
            place
            for row in rows
            for column in columns
            for place in (row * width + column, row * width + column + 1, (row + 1) * width + column)
        ]
    )


def _spread(length: int) -> List[int]:
    count = min(POINTS, length)
    return [(2 * index + 1) * length // (2 * count) for index in range(count)]
