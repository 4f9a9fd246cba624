"""`model-server bundle`: makes, checks and packs bundles, on the machine where the model was trained.

docs/models.md shows how.
"""

import argparse
import gzip
import hashlib
import io
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Sequence

from PIL import Image

from model_server.commands import CommandError
from model_server.commands.classifier import load_classifier, without_pickle
from model_server.commands.engines import choose
from model_server.commands.images import find_images, read_images
from model_server.model.accuracy import Accuracy, measure
from model_server.model.bundle import (
    ACCURACY,
    EXPORTS,
    FRUIT_CLASSIFIER,
    MANIFEST,
    REFERENCE,
    TORCH,
    TORCHSCRIPT,
    Bundle,
    BundleError,
    Manifest,
    make_bundle,
    read_bundle,
    read_bytes,
    refuse_existing,
    write_bundle,
)
from model_server.model.reference import write_json, write_whole

if TYPE_CHECKING:  # the import of torch takes seconds
    from model_server.model.classifier import Classifier

YEAR_1980 = 315532800
# Options of `create` that are fields of the manifest.
DESCRIBED = (
    *("architecture", "classes", "input_size", "resize", "interpolation", "antialias", "exif_orientation"),
    *("mean", "std"),
)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def add_bundle(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `model-server bundle` to the commands."""
    parser = commands.add_parser(
        "bundle",
        help="make, check and pack bundles of models",
        description="Make, check and pack bundles: a directory with model.yaml, weights.safetensors or weights.pt "
        "and, perhaps, reference.json. docs/models.md describes them.",
    )
    parser.set_defaults(prefix="bundle")
    actions = parser.add_subparsers(metavar="COMMAND", required=True)

    making = actions.add_parser(
        "create",
        help="write a bundle of trained weights",
        description="Write a bundle of trained weights, after the model has answered an image. A state dict is written "
        "as safetensors, which no release of torch can be made to run code with.",
        fromfile_prefix_chars="@",
    )
    making.set_defaults(run=create)
    making.add_argument("directory", type=Path, metavar="DIR", help="the bundle to write; nothing may be there")
    making.add_argument(
        "--weights",
        type=Path,
        required=True,
        metavar="FILE",
        help="state dict (.pt or .safetensors) or TorchScript of the model",
    )
    making.add_argument("--name", required=True, help="of the model: letters, digits and . _ + -")
    making.add_argument("--version", required=True, help="of the model: letters, digits and . _ + -")
    making.add_argument(
        "--preset",
        metavar="WEIGHTS",
        help="weights of torchvision, such as ResNet50_Weights.DEFAULT, whose architecture, classes and transforms are "
        "the defaults of the options below; it needs torchvision, and fetches nothing",
    )
    making.add_argument("--architecture", help="fruit_classifier, torchscript, or a model of torchvision like resnet18")
    making.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help="their names, in the order of the model's outputs; @FILE: a file with one in each line",
    )
    making.add_argument("--input-size", type=int, metavar="PIXELS", help="side of the square input (default: 224)")
    making.add_argument(
        "--resize",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="what the shorter side of an image is scaled to before the square is cut out, or height and width "
        "(default: the input size)",
    )
    making.add_argument("--interpolation", choices=("bilinear", "bicubic"), help="of the scaling (default: bilinear)")
    making.add_argument(
        "--no-antialias",
        dest="antialias",
        action="store_const",
        const=False,
        help="scale as for tensors with antialias=False (default: all pixels count, as with Pillow)",
    )
    making.add_argument(
        "--exif-orientation", action="store_const", const=True, help="turn photos as their EXIF data say"
    )
    channels = ("RED", "GREEN", "BLUE")
    making.add_argument(
        "--mean",
        type=float,
        nargs=3,
        metavar=channels,
        help="subtracted from pixels of 0..1 (default: ImageNet's, 0.485 0.456 0.406)",
    )
    making.add_argument(
        "--std",
        type=float,
        nargs=3,
        metavar=channels,
        help="what they are divided by then (default: ImageNet's, 0.229 0.224 0.225)",
    )

    making.add_argument(
        "--engine",
        choices=(TORCH, *EXPORTS),
        default="",
        help="what runs the model (default: the fastest that is installed here and gives the same logits)",
    )

    checking = actions.add_parser(
        "check",
        help="prove that a bundle can be served",
        description="Check model.yaml, the checksum of the weights and the reference, load the model and let it "
        "classify an image, and see how often it is right.",
    )
    checking.set_defaults(run=check)
    checking.add_argument("directory", type=Path, metavar="DIR", help="the bundle")
    checking.add_argument(
        "--labelled",
        type=Path,
        metavar="FOLDER",
        help="images to measure the accuracy with: those of class x anywhere below FOLDER/x; it is written into the "
        "bundle as accuracy.json",
    )

    packing = actions.add_parser(
        "pack",
        help="write a bundle as one archive",
        description="Check a bundle and write it as one archive, that the role model_server takes.",
    )
    packing.set_defaults(run=pack)
    packing.add_argument("directory", type=Path, metavar="DIR", help="the bundle")
    packing.add_argument("archive", type=Path, metavar="OUT.tar.gz", help="the archive to write; nothing may be there")


def create(options: argparse.Namespace) -> None:
    """Write a bundle of trained weights, unless the model fails to answer."""
    refuse_existing(options.directory)
    weights = read_bytes(options.weights)
    fields: Dict[str, object] = {
        "name": options.name,
        "version": options.version,
        **_described(options),
    }
    bundle = make_bundle(options.directory, weights, fields)._replace(weights_path=options.weights)
    choice = choose(bundle, options.engine, _say)
    fields.update(choice.fields)
    bundle = make_bundle(options.directory, without_pickle(bundle), fields, choice.exports)
    _describe(bundle, choice.classifier)
    write_bundle(options.directory, bundle.weights, fields, exports=choice.exports)
    _say(f"written: {options.directory}")


def _described(options: argparse.Namespace) -> Dict[str, object]:
    """Return what the options say of the model, over the preset's, over the defaults.

    Raises:
        CommandError: the preset is unknown, or without one the architecture or the classes are missing.
    """
    fields: Dict[str, object] = {
        "architecture": None,
        "classes": None,
        "input_size": 224,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }
    if options.preset:
        from model_server.commands.presets import preset  # noqa: PLC0415 - imports torchvision

        fields.update(preset(options.preset))
    given = {name: getattr(options, name) for name in DESCRIBED}
    given["resize"] = given["resize"][0] if given["resize"] and len(given["resize"]) == 1 else given["resize"]
    fields.update({name: value for name, value in given.items() if value is not None})
    if given["input_size"] and not given["resize"]:
        fields.pop("resize", None)  # the preset's belongs to its own input size
    for name in ("architecture", "classes"):
        if fields[name] is None:
            raise CommandError(f"--{name} is missing; give it, or --preset with weights of torchvision.")
    return fields


def check(options: argparse.Namespace) -> None:
    """Prove that a bundle can be served, and how often it is right."""
    bundle = read_bundle(options.directory)
    labelled = _find_labelled(options.labelled, bundle.manifest.classes) if options.labelled else {}
    classifier = load_classifier(bundle)
    _describe(bundle, classifier)
    if labelled:
        accuracy = _judge(classifier, labelled, options.labelled)
        try:
            write_json(options.directory / ACCURACY, accuracy)
        except OSError as error:
            raise BundleError(f"{options.directory} cannot be written to: {error.strerror}.") from error
        _say(f"written:      {options.directory / ACCURACY}, with which the server estimates its accuracy")


def pack(options: argparse.Namespace) -> None:
    """Check a bundle and write it as one archive: the same bundle, and the same Python, give the same bytes."""
    refuse_existing(options.archive)
    bundle = read_bundle(options.directory)
    _describe(bundle, load_classifier(bundle))
    files = {MANIFEST: read_bytes(options.directory / MANIFEST), bundle.weights_path.name: bundle.weights}
    for name, part in ((REFERENCE, bundle.reference), (ACCURACY, bundle.accuracy)):
        if part is not None:
            files[name] = read_bytes(options.directory / name)
    files.update({EXPORTS[engine].file: content for engine, content in bundle.exports.items()})
    archive = _archive(files)
    try:
        write_whole(options.archive, archive)
    except OSError as error:
        raise BundleError(f"{options.archive} cannot be written: {error.strerror}.") from error
    sha256 = hashlib.sha256(archive).hexdigest()
    _say(f"archive: {options.archive}, {_megabytes(archive)}, holds {', '.join(sorted(files))}")
    _say(f"sha256:  {sha256}", "", "To serve it, as variables of the role model_server:", "")
    _say(f"model_server_bundle: {options.archive.resolve()} # or the URL where it is put")
    _say(f"model_server_bundle_sha256: {sha256}")
    needs_torchvision = bundle.manifest.architecture not in (FRUIT_CLASSIFIER, TORCHSCRIPT)
    if needs_torchvision and bundle.manifest.engine == TORCH:
        _say("model_server_torchvision: true")


def _describe(bundle: Bundle, classifier: "Classifier") -> None:
    manifest, reference = bundle.manifest, bundle.reference
    size = manifest.input_size
    pixels = classifier.preprocess(Image.linear_gradient("L").convert("RGB"))
    started = time.perf_counter()
    logits = classifier.logits(pixels)
    milliseconds = 1000 * (time.perf_counter() - started)
    _say(f"model:        {manifest.name} {manifest.version}")
    _say(f"architecture: {manifest.architecture}, for images of {size}×{size} pixels{_scaled(manifest)}")
    _say(f"weights:      {_megabytes(bundle.weights)}, SHA-256 {manifest.weights_sha256}")
    _say(f"classes:      {len(manifest.classes)}, as many as logits: {_some(manifest.classes)}")
    batches = f", in batches of up to {classifier.batch_size}" if classifier.batch_size > 1 else ""
    _say(f"engine:       {classifier.engine}{batches}")
    _say(f"forward pass: {milliseconds:.1f} ms, with one thread")
    if float(logits.min()) >= 0 and abs(float(logits.sum()) - 1) < 1e-4:
        _say(
            "warning:      the model's outputs look like probabilities, but the server takes the softmax of logits: "
            "its confidences will be too low; leave the softmax out of the model"
        )
    if reference is not None:
        _say(f"reference:    {reference.images} images")
    else:
        _say("reference:    none, so that drift will not be seen (model-server reference makes it)")


def _scaled(manifest: Manifest) -> str:
    """What is done before the square is cut out, where it is not the usual."""
    said = []
    if manifest.resize not in (None, manifest.input_size):
        sides = manifest.resize
        said.append(
            f"{sides[1]}×{sides[0]} pixels" if isinstance(sides, tuple) else f"{sides} pixels on the shorter side"
        )
    said += ["bicubic"] if manifest.interpolation == "bicubic" else []
    said += [] if manifest.antialias else ["without antialias"]
    said += ["turned as EXIF says"] if manifest.exif_orientation else []
    return f", cut out of images that are scaled to {', '.join(said)}" if said else ""


def _find_labelled(folder: Path, classes: Sequence[str]) -> Dict[str, List[Path]]:
    """Return the images below each directory of a folder, which is named after the class that they are of."""
    if not folder.is_dir():
        raise CommandError(f"{folder} is not a directory.")
    directories = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    for directory in directories:
        if directory.name not in classes:
            raise CommandError(f"{directory} is named after no class of the model; its classes are {_some(classes)}.")
    if not directories:
        raise CommandError(f"{folder} has no directory that is named after a class: {_some(classes)}.")
    return {directory.name: find_images([directory]) for directory in directories}


def _judge(classifier: "Classifier", labelled: Dict[str, List[Path]], folder: Path) -> Accuracy:
    hits, counts, judged = {}, {}, []
    for name, paths in labelled.items():
        answers = [
            classifier.classify(classifier.preprocess(image)) for image in read_images(paths, classifier.manifest, _say)
        ]
        rights = [answer.likely_class == name for answer in answers]
        hits[name], counts[name] = sum(rights), len(rights)
        judged += [(answer.confidence, is_right) for answer, is_right in zip(answers, rights)]
    total = sum(counts.values())
    if total == 0:
        raise CommandError(f"{folder} has no image that can be decoded.")
    left_out = sum(map(len, labelled.values())) - total
    _say(f"accuracy:     {_share(sum(hits.values()), total)}" + (f", {left_out} left out" if left_out else ""))
    for name, count in counts.items():
        _say(f"  {name}: {_share(hits[name], count)}")
    return measure(judged, classifier.manifest.weights_sha256)


def _share(hits: int, count: int) -> str:
    return f"{hits / count:.1%} of {count} image{'s' * (count > 1)}" if count else "no image"


def _archive(files: Dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    # No name, time or owner of this machine. Some versions of tar complain of files from 1970.
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as compressed, tarfile.open(
        fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT
    ) as tar:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), 0o644, YEAR_1980
            entry.uname = entry.gname = "root"
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def _megabytes(content: bytes) -> str:
    return f"{len(content) / 1e6:.1f} MB"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


def _say(*lines: str) -> None:
    print("\n".join(lines), flush=True)  # noqa: T201 - a command's findings
