"""The reference: what images the model is meant for. Requests are compared with it to detect drift.

`model-server reference --bundle DIR IMAGES…` makes it and writes it into the bundle, as `reference.json`:

    {"images": 240,
     "edges": {"brightness": [0.31, 0.38, …], "contrast": […], "saturation": […], "sharpness": […], …},
     "ratios": {"brightness": {"00": 0.1, "01": 0.0958, …}, …, "predicted_class": {"apple": 0.35, …}}}

`images` is how many there were. The bins of a number are those between its `edges`: "00" ends below the first, "01"
begins with it, and so on. `ratios` are the shares of the images that were in each bin, or classified as each class.

The edges are deciles, made robust: each is rounded down to a hundredth (sharpness: a thousandth, energy and margin: a
tenth; projections: to a power of ten that is a hundredth to a tenth of what the deciles span), so that a bin is not
narrower than random variation. Equal deciles become one; their value gets a bin of its own, with an edge above it too,
so that drift is visible in both directions. Where values lie between 0 and 1, these are no edges: nothing is beyond.
"""

import os
import tempfile
from bisect import bisect_right
from math import ceil, floor, log10
from pathlib import Path
from statistics import quantiles
from typing import Container, Dict, List, Mapping, Sequence, Tuple, Union

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationInfo, field_validator

STEPS = {"brightness": 100, "contrast": 100, "saturation": 100, "sharpness": 1000, "confidence": 100}
LOGIT_STEPS = {"energy": 10, "margin": 10}  # of logits, which have no bounds
NUMBERS = (*STEPS, *LOGIT_STEPS)
PREDICTED_CLASS = "predicted_class"
# Of the layer before the last; models whose last layer is not known have none.
PROJECTIONS = ("projection_1", "projection_2", "projection_3")
FEATURES = (*NUMBERS, PREDICTED_CLASS, *PROJECTIONS)
# The values of one image, in the order of FEATURES; without projections it ends before them.
Observation = Sequence[Union[float, str]]
OPTIONAL = (*LOGIT_STEPS, *PROJECTIONS)  # references of earlier releases lack them
BINS = tuple(f"{number:02}" for number in range(10))
TOLERANCE = 1e-6
TAIL = 3  # times the bin beside it: of a normal distribution, 0.9 % of the values lie beyond such tails


class Reference(BaseModel):
    """The distribution of each feature over the reference set; the module's docstring has the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(ge=1)
    edges: Dict[str, Tuple[FiniteFloat, ...]]
    ratios: Dict[str, Dict[str, FiniteFloat]]

    def bin(self, feature: str, value: Union[float, str]) -> str:
        """Name the bin of a feature's value; that of a predicted class is the class itself."""
        return value if isinstance(value, str) else BINS[bisect_right(self.edges[feature], value)]

    def outlying(self, observation: Observation) -> List[str]:
        """Name the features of an image that lie outside the reference's range.

        The range ends beyond the first and the last edge, by `TAIL` times the bin that is next to it. Confidence has
        none: it cannot be too high, and where it is low the image is uncertain.

        Args:
            observation: the values of `FEATURES`, in their order.
        """
        return [
            feature
            for feature, value in zip(FEATURES, observation)
            if feature != "confidence" and isinstance(value, float) and self._is_beyond(feature, value)
        ]

    def _is_beyond(self, feature: str, value: float) -> bool:
        edges = self.edges.get(feature, ())
        if len(edges) < 2:
            return False
        low, high = edges[0] - TAIL * (edges[1] - edges[0]), edges[-1] + TAIL * (edges[-1] - edges[-2])
        return not low <= value <= high

    @field_validator("edges")
    @classmethod
    def _ascending(cls, edges: Dict[str, Tuple[float, ...]]) -> Dict[str, Tuple[float, ...]]:
        _require_names(edges, (*NUMBERS, *PROJECTIONS), optional=OPTIONAL)
        for feature, values in edges.items():
            if len(values) >= len(BINS):
                raise ValueError(f"{feature} has {len(values)} edges, at most {len(BINS) - 1} are allowed")
            if any(low >= high for low, high in zip(values, values[1:])):
                raise ValueError(f"the edges of {feature} must ascend")
        return edges

    @field_validator("ratios")
    @classmethod
    def _whole(cls, ratios: Dict[str, Dict[str, float]], info: ValidationInfo) -> Dict[str, Dict[str, float]]:
        _require_names(ratios, FEATURES, optional=OPTIONAL)
        for feature, shares in ratios.items():
            if any(not 0 <= share <= 1 for share in shares.values()):
                raise ValueError(f"the shares of {feature} must be between 0 and 1")
            if abs(sum(shares.values()) - 1) > TOLERANCE:
                raise ValueError(f"the shares of {feature} make {sum(shares.values()):.6g}, they must make 1")
        for feature, values in info.data.get("edges", {}).items():
            bins = BINS[: len(values) + 1]
            if set(ratios.get(feature, ())) != set(bins):
                raise ValueError(f"the bins of {feature} must be {', '.join(bins)}, as its edges divide them")
        return ratios


def _require_names(given: Mapping[str, object], expected: Sequence[str], optional: Container[str]) -> None:
    for name in given:
        if name not in expected:
            raise ValueError(f"{name!r} is no feature, known are {', '.join(expected)}")
    for name in expected:
        if name not in given and name not in optional:
            raise ValueError(f"{name} is missing")


def build(observations: Sequence[Observation], classes: Sequence[str]) -> Reference:
    """Make a reference of the observations of two images or more; their order does not matter."""
    columns = dict(zip(FEATURES, zip(*observations)))
    predicted = columns.pop(PREDICTED_CLASS)
    count = len(observations)
    edges = {feature: _edges(column, feature) for feature, column in columns.items()}
    ratios = {}
    for feature, column in columns.items():
        bins = [bisect_right(edges[feature], value) for value in column]
        ratios[feature] = {BINS[number]: bins.count(number) / count for number in range(len(edges[feature]) + 1)}
    ratios[PREDICTED_CLASS] = {name: predicted.count(name) / count for name in classes}
    return Reference(images=count, edges=edges, ratios=ratios)


def _edges(values: Sequence[float], feature: str) -> Tuple[float, ...]:
    """Return the robust deciles of the module's docstring."""
    is_bounded = feature in STEPS
    exact = quantiles(values, n=len(BINS), method="inclusive")
    steps = {**STEPS, **LOGIT_STEPS}.get(feature) or _steps_of(exact[-1] - exact[0])
    deciles = [floor(decile * steps) for decile in exact]
    above = {decile + 1 for decile in deciles if deciles.count(decile) > 1}
    return tuple(edge / steps for edge in sorted({*deciles, *above}) if 0 < edge < steps or not is_bounded)


def _steps_of(span: float) -> float:
    """Return how many steps of a power of ten make 1, so that a span of values has ten to a hundred of them."""
    return float(10 ** ceil(1 - log10(span))) if span else 1.0


def write_json(path: Path, findings: BaseModel) -> None:
    """Write what a bundle says of its model as JSON at `path`, as `write_whole` does."""
    write_whole(path, (findings.model_dump_json(indent=2) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, in place of an older one, whole or not at all.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    handle, staging = tempfile.mkstemp(prefix=f".{path.name}.", dir=str(path.parent))
    try:
        with open(handle, "wb") as file:
            file.write(content)
        os.chmod(staging, 0o644)
        os.replace(staging, path)
    except BaseException:
        os.unlink(staging)
        raise
