"""What a model's images are like when all is well: the reference that requests are compared with to see drift.

`python -m model_server.reference --bundle DIR IMAGES…` makes it and writes it into the bundle, as `reference.json`:

    {"images": 240,
     "edges": {"brightness": [0.31, 0.38, …], "contrast": […], "saturation": […], "sharpness": […], "confidence": […]},
     "ratios": {"brightness": {"00": 0.1, "01": 0.0958, …}, …, "predicted_class": {"apple": 0.35, …}}}

`images` is how many there were. The bins of a number are those between its `edges`: "00" ends below the first, "01"
begins with it, and so on. `ratios` are the shares of the images that were in each bin, or classified as each class.

The edges are the deciles, made robust: each is rounded down to a hundredth (sharpness: a thousandth), so that none
tells apart what only chance does, and deciles that coincide become one. The values that they stand for get a bin of
their own, with an edge above them too, so that drift shows to both sides. An edge at 0 or 1 would divide nothing.
"""

import argparse
import os
import sys
import tempfile
from bisect import bisect_right
from math import floor
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple, Union

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationInfo, field_validator

from model_server.preprocessing import ImageTooLargeError, UndecodableImageError, decode
from model_server.settings import Settings

if TYPE_CHECKING:
    from model_server.classifier import Classifier
    from model_server.features import Observation

STEPS = {"brightness": 100, "contrast": 100, "saturation": 100, "sharpness": 1000, "confidence": 100}
NUMBERS = tuple(STEPS)
PREDICTED_CLASS = "predicted_class"
BINS = tuple(f"{number:02}" for number in range(10))
TOLERANCE = 1e-6

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
FEWEST_IMAGES = len(BINS)
STEADY_IMAGES = 200
MAX_PIXELS: int = Settings.model_fields["max_image_pixels"].default


class Reference(BaseModel):
    """The distribution of each feature over the reference set; the module's docstring has the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(ge=1)
    edges: Dict[str, Tuple[FiniteFloat, ...]]
    ratios: Dict[str, Dict[str, FiniteFloat]]

    def bin(self, feature: str, value: Union[float, str]) -> str:
        """Name the bin of a feature's value; that of a predicted class is the class itself."""
        return value if isinstance(value, str) else BINS[bisect_right(self.edges[feature], value)]

    @field_validator("edges")
    @classmethod
    def _ascending(cls, edges: Dict[str, Tuple[float, ...]]) -> Dict[str, Tuple[float, ...]]:
        _require_names(edges, NUMBERS)
        for feature, values in edges.items():
            if len(values) >= len(BINS):
                raise ValueError(f"{feature} has {len(values)} edges, at most {len(BINS) - 1} are allowed")
            if any(low >= high for low, high in zip(values, values[1:])):
                raise ValueError(f"the edges of {feature} must ascend")
        return edges

    @field_validator("ratios")
    @classmethod
    def _whole(cls, ratios: Dict[str, Dict[str, float]], info: ValidationInfo) -> Dict[str, Dict[str, float]]:
        _require_names(ratios, (*NUMBERS, PREDICTED_CLASS))
        for feature, shares in ratios.items():
            if any(not 0 <= share <= 1 for share in shares.values()):
                raise ValueError(f"the shares of {feature} must be between 0 and 1")
            if abs(sum(shares.values()) - 1) > TOLERANCE:
                raise ValueError(f"the shares of {feature} make {sum(shares.values()):.6g}, they must make 1")
        for feature, values in info.data.get("edges", {}).items():
            bins = BINS[: len(values) + 1]
            if set(ratios[feature]) != set(bins):
                raise ValueError(f"the bins of {feature} must be {', '.join(bins)}, as its edges divide them")
        return ratios


def _require_names(given: Mapping[str, object], expected: Sequence[str]) -> None:
    for name in given:
        if name not in expected:
            raise ValueError(f"{name!r} is no feature, known are {', '.join(expected)}")
    for name in expected:
        if name not in given:
            raise ValueError(f"{name} is missing")


def build(observations: Sequence["Observation"], classes: Sequence[str]) -> Reference:
    """Divide what was observed of a reference set, two images or more, into bins; their order does not matter."""
    *columns, predicted = zip(*observations)
    count = len(observations)
    edges = {feature: _edges(column, STEPS[feature]) for feature, column in zip(NUMBERS, columns)}
    ratios = {}
    for feature, column in zip(NUMBERS, columns):
        bins = [bisect_right(edges[feature], value) for value in column]
        ratios[feature] = {BINS[number]: bins.count(number) / count for number in range(len(edges[feature]) + 1)}
    ratios[PREDICTED_CLASS] = {name: predicted.count(name) / count for name in classes}
    return Reference(images=count, edges=edges, ratios=ratios)


def _edges(values: Sequence[float], steps: int) -> Tuple[float, ...]:
    """Return the robust deciles of the module's docstring; `steps` is how many values there are from 0 to 1."""
    deciles = [floor(decile * steps) for decile in quantiles(values, n=len(BINS), method="inclusive")]
    above = {decile + 1 for decile in deciles if deciles.count(decile) > 1}
    return tuple(edge / steps for edge in sorted({*deciles, *above}) if 0 < edge < steps)


def write_reference(path: Path, reference: Reference) -> None:
    """Write a reference as JSON at `path`, as `write_whole` does."""
    write_whole(path, (reference.model_dump_json(indent=2) + "\n").encode())


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


class ImagesError(ValueError):
    """Images that make no reference; the message is one sentence."""


def find_images(places: Sequence[Path]) -> List[Path]:
    """Return the files named, and the images anywhere below the directories named: each once, in a fixed order.

    Raises:
        ImagesError: there is nothing at one of the places, or no image below it.
    """
    found: Set[Path] = set()
    for place in places:
        if not place.exists():
            raise ImagesError(f"{place} does not exist.")
        files = [place]
        if place.is_dir():
            files = [path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
        if not files:
            raise ImagesError(f"{place} has no image ({', '.join('*' + suffix for suffix in SUFFIXES)}).")
        found.update(path.resolve() for path in files)
    return sorted(found)


def read_images(paths: Sequence[Path], say: Callable[[str], None]) -> Iterator[Image.Image]:
    """Decode the images one by one; `say` gets a line for each that is left out, and one for each hundred."""
    for number, path in enumerate(paths, 1):
        try:
            image = decode(path.read_bytes(), MAX_PIXELS)
        except ImageTooLargeError as error:
            say(f"left out, because it is too large ({error}): {path}")
        except UndecodableImageError:
            say(f"left out, because it cannot be decoded as an image: {path}")
        except OSError as error:
            say(f"left out, because it cannot be read ({error.strerror}): {path}")
        else:
            yield image
        if number % 100 == 0:
            say(f"{number} of {len(paths)} images")


def observe_images(classifier: "Classifier", paths: Sequence[Path]) -> Iterator["Observation"]:
    """Observe the images one by one, with progress on standard output; what cannot be decoded is named there."""
    from model_server.features import observe  # noqa: PLC0415 - torch takes seconds

    for image in read_images(paths, _say):
        yield observe(classifier, classifier.preprocess(image))


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run the command line; ends with a sentence and exit status 1 when no reference was written."""
    parser = argparse.ArgumentParser(
        prog="python -m model_server.reference",
        description="Describe the images that a model is meant for, so that drift away from them can be seen: "
        "reference.json in the bundle, in place of an older one. The server reads it when it starts.",
    )
    parser.add_argument(
        "--bundle", type=Path, required=True, metavar="DIR", help="the bundle whose model sees the images"
    )
    parser.add_argument(
        "images",
        type=Path,
        nargs="+",
        metavar="IMAGES",
        help=f"typical images, {FEWEST_IMAGES} or more (better {STEADY_IMAGES}): files, or directories that are "
        f"searched with all below them for {', '.join('*' + suffix for suffix in SUFFIXES)}",
    )
    options = parser.parse_args(arguments)
    # The bundle knows its reference; the classifier's torch takes seconds to be imported.
    from model_server.bundle import REFERENCE, BundleError, read_model  # noqa: PLC0415

    try:
        paths = find_images(options.images)
        if len(paths) < FEWEST_IMAGES:
            raise ImagesError(f"{len(paths)} images are too few; give {FEWEST_IMAGES} or more.")
        bundle = read_model(options.bundle)
        from model_server.classifier import Classifier  # noqa: PLC0415

        classifier = Classifier(bundle)
        _say(f"{len(paths)} images, as {bundle.manifest.name} {bundle.manifest.version} sees them")
        observations = list(observe_images(classifier, paths))
        if len(observations) < FEWEST_IMAGES:
            raise ImagesError(f"{len(observations)} images are left, too few; give {FEWEST_IMAGES} or more.")
        written = options.bundle / REFERENCE
        write_reference(written, build(observations, bundle.manifest.classes))
    except (BundleError, ImagesError) as error:
        sys.exit(f"reference: {error}")
    except OSError as error:
        sys.exit(f"reference: {options.bundle} cannot be written to: {error.strerror}.")
    if len(observations) < STEADY_IMAGES:
        psi = (len(BINS) - 1) / len(observations)
        _say(
            f"{len(observations)} images are few: requests with other images of the same kind "
            f"would show a psi of about {psi:.2f} by chance alone; give {STEADY_IMAGES} or more"
        )
    _say(f"{len(observations)} of {len(paths)} images described in {written}")


def _say(line: str) -> None:
    print(f"reference: {line}", flush=True)  # noqa: T201 - a command's progress


if __name__ == "__main__":
    main()
