"""How often a model is right, by its confidence: what is known of it before anybody labels its predictions.

`model-server bundle check --labelled` measures it and writes it into the bundle, as `accuracy.json`:

    {"weights_sha256": "…", "bins": {"0.5": {"images": 7, "right": 3}, "0.9": {"images": 20, "right": 17}, …}}

A bin is named after its upper bound, and there is one only where images fell into it.
"""

from bisect import bisect_left
from math import isnan
from typing import Dict, Iterable, List, Tuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

CONFIDENCES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)  # upper bounds of the bins
CONFIDENCE_BINS = tuple(map(str, CONFIDENCES))
PRIOR = 2  # images that the confidence itself counts for: a bin of one image says little


def confidence_bin(confidence: float) -> int:
    """Return the number of the bin that a confidence falls into; that of a broken model, NaN, is the first one."""
    return 0 if isnan(confidence) else min(bisect_left(CONFIDENCES, confidence), len(CONFIDENCES) - 1)


class Judged(BaseModel):
    """Images of one bin, and of how many of them the model named the true class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(ge=1)
    right: int = Field(ge=0)

    @model_validator(mode="after")
    def _possible(self) -> "Judged":
        if self.right > self.images:
            raise ValueError(f"{self.right} of {self.images} images cannot be right")
        return self


class Accuracy(BaseModel):
    """What labelled images have shown of a model; the module's docstring has the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bins: Dict[str, Judged] = Field(min_length=1)

    @model_validator(mode="after")
    def _known(self) -> "Accuracy":
        for name in self.bins:
            if name not in CONFIDENCE_BINS:
                raise ValueError(f"{name!r} is no bin, known are {', '.join(CONFIDENCE_BINS)}")
        return self

    @property
    def images(self) -> int:
        """The number of images."""
        return sum(judged.images for judged in self.bins.values())

    @property
    def ratio(self) -> float:
        """The share of the images whose class was right, 0..1."""
        return sum(judged.right for judged in self.bins.values()) / self.images

    def expected(self) -> List[float]:
        """Return the share of right answers to be expected in each bin, 0..1; without images, it is the confidence."""
        shares = []
        for name, below, above in zip(CONFIDENCE_BINS, (0.0, *CONFIDENCES), CONFIDENCES):
            right, images = PRIOR * (below + above) / 2, PRIOR
            if name in self.bins:
                right, images = right + self.bins[name].right, images + self.bins[name].images
            shares.append(right / images)
        return shares


def measure(answers: Iterable[Tuple[float, bool]], weights_sha256: str) -> Accuracy:
    """Make it of the confidence in each labelled image, one at least, and whether the class was right."""
    counts: Dict[str, List[int]] = {}
    for confidence, is_right in answers:
        count = counts.setdefault(CONFIDENCE_BINS[confidence_bin(confidence)], [0, 0])
        count[0] += 1
        count[1] += is_right
    bins = {name: Judged(images=images, right=right) for name, (images, right) in sorted(counts.items())}
    return Accuracy(weights_sha256=weights_sha256, bins=bins)
