"""`model-server reference`: describes the images that a model is meant for, and writes that into its bundle."""

import argparse
from pathlib import Path

from model_server.commands import CommandError
from model_server.commands.classifier import load_classifier
from model_server.commands.images import SUFFIXES, find_images, read_images
from model_server.model.bundle import REFERENCE, BundleError, read_model
from model_server.model.reference import BINS, build, write_json

FEWEST_IMAGES = len(BINS)
STEADY_IMAGES = 200


def add_reference(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `model-server reference` to the commands."""
    parser = commands.add_parser(
        "reference",
        help="describe typical images, so that drift away from them can be seen",
        description="Describe the images that a model is meant for, so that drift away from them can be seen: "
        "reference.json in the bundle, in place of an older one. The server reads it when it starts.",
    )
    parser.set_defaults(run=write_reference_of, prefix="reference")
    parser.add_argument(
        "--bundle", type=Path, required=True, metavar="DIR", help="the bundle whose model sees the images"
    )
    parser.add_argument(
        "images",
        type=Path,
        nargs="+",
        metavar="IMAGES",
        help=f"typical images, {FEWEST_IMAGES} or more (better {STEADY_IMAGES}): files, or directories that are "
        f"searched with all below them for {', '.join('*' + suffix for suffix in SUFFIXES)}, or labels.csv of "
        "`model-server samples`, of which the images with a label are taken",
    )


def write_reference_of(options: argparse.Namespace) -> None:
    """Write the reference of the images named into the bundle.

    Raises:
        BundleError, CommandError: none was written; the older one, if there was one, is still there.
    """
    paths = find_images(options.images)
    if len(paths) < FEWEST_IMAGES:
        raise CommandError(f"{len(paths)} images are too few; give {FEWEST_IMAGES} or more.")
    bundle = read_model(options.bundle)
    classifier = load_classifier(bundle)
    from model_server.metrics.features import observe  # noqa: PLC0415 - imports torch

    _say(f"{len(paths)} images, as {bundle.manifest.name} {bundle.manifest.version} sees them")
    observations = []
    for image in read_images(paths, bundle.manifest, _say):
        pixels = classifier.preprocess(image)
        observations.append(observe(pixels, *classifier.classify(pixels)))
    if len(observations) < FEWEST_IMAGES:
        raise CommandError(f"{len(observations)} images are left, too few; give {FEWEST_IMAGES} or more.")
    written = options.bundle / REFERENCE
    try:
        write_json(written, build(observations, bundle.manifest.classes))
    except OSError as error:
        raise BundleError(f"{options.bundle} cannot be written to: {error.strerror}.") from error
    if len(observations) < STEADY_IMAGES:
        psi = (len(BINS) - 1) / len(observations)
        _say(
            f"{len(observations)} images are few: requests with other images of the same kind "
            f"would show a psi of about {psi:.2f} by chance alone; give {STEADY_IMAGES} or more"
        )
    _say(f"{len(observations)} of {len(paths)} images described in {written}")


def _say(line: str) -> None:
    print(f"reference: {line}", flush=True)  # noqa: T201 - a command's progress
