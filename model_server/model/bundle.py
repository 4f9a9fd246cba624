"""A bundle: the directory that holds one model.

`model.yaml` is about it, and `weights.safetensors` or `weights.pt` its state dict or TorchScript. Others may be absent:
`model.onnx` and `model.ncnn.zip` are the same model for another engine, `reference.json` is the reference that its
requests are compared with, and `accuracy.json` how often it is right.
docs/models.md has the fields, and how `model-server bundle` makes, checks and packs bundles.
"""

import difflib
import hashlib
import json
import os
import re
import shutil
import tempfile
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Dict, Literal, Mapping, NamedTuple, Optional, Sequence, Tuple, Type, TypeVar, Union

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator, model_validator

from model_server.model.accuracy import Accuracy
from model_server.model.reference import PREDICTED_CLASS, Reference, write_json

MANIFEST = "model.yaml"
SAFETENSORS, PICKLED = "weights.safetensors", "weights.pt"  # a bundle has one of them
REFERENCE, ACCURACY = "reference.json", "accuracy.json"
FRUIT_CLASSIFIER, TORCHSCRIPT = "fruit_classifier", "torchscript"  # the other architectures are torchvision's
TORCH, ONNX_RUNTIME, NCNN = "torch", "onnxruntime", "ncnn"  # the engines
LARGEST_SIDE = 4096  # pixels
LARGEST_BATCH = 4  # a batch of 8 would gain another 10 %, but each request would wait twice as long


class Export(NamedTuple):
    """The file that an engine takes in place of the weights, and the field of the manifest for its SHA-256."""

    file: str
    field: str


EXPORTS = {ONNX_RUNTIME: Export("model.onnx", "onnx_sha256"), NCNN: Export("model.ncnn.zip", "ncnn_sha256")}
NOTHING_EXPORTED: Mapping[str, bytes] = MappingProxyType({})

Model = TypeVar("Model", bound=BaseModel)
Triple = Tuple[float, float, float]


class BundleError(ValueError):
    """A bundle that cannot be used; the message is one sentence that names the file, what it has and what it should."""


class Manifest(BaseModel):
    """What `model.yaml` says; docs/models.md has the fields one by one.

    `classes` are in the order of the model's outputs. `input_size` is the side of the square input in
    pixels; `mean` and `std` are per channel (red, green, blue), of pixel values scaled to 0..1. `resize` is what the
    shorter side of an image is scaled to before the square is cut out, or its height and width; None: `input_size`.
    `batch_size` is the number of images that `engine` was proved to classify together; None: what is known of the
    architecture.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    name: str
    version: str
    architecture: str = Field(min_length=1)
    classes: Tuple[str, ...] = Field(min_length=2)
    input_size: int = Field(ge=16, le=LARGEST_SIDE)
    mean: Tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: Tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    # Not in bundles of earlier releases, nor needed in one that is written by hand.
    resize: Union[int, Tuple[int, int], None] = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    exif_orientation: bool = False
    engine: Literal["torch", "onnxruntime", "ncnn"] = "torch"
    batch_size: Optional[int] = Field(None, ge=1, le=LARGEST_BATCH)
    onnx_sha256: Optional[str] = Field(None, pattern="^[0-9a-f]{64}$")
    ncnn_sha256: Optional[str] = Field(None, pattern="^[0-9a-f]{64}$")

    @field_validator("name", "version")
    @classmethod
    def _fit_for_a_path(cls, value: str) -> str:
        if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", value):
            raise ValueError("only letters, digits and . _ + - are allowed, a letter or digit first, 64 at most")
        return value

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: Tuple[str, ...]) -> Tuple[str, ...]:
        if len(set(classes)) < len(classes) or not all(classes):
            raise ValueError("class names must be distinct and not empty")
        return classes

    @field_validator("mean")
    @classmethod
    def _scaled(cls, mean: Triple) -> Triple:
        if not 0 <= min(mean) <= max(mean) <= 1:
            raise ValueError("means are of pixels scaled to 0..1; divide those of pixels of 0..255 by 255")
        return mean

    @field_validator("std")
    @classmethod
    def _positive(cls, std: Triple) -> Triple:
        if not 0 < min(std) <= max(std) <= 1:
            raise ValueError(
                "standard deviations are above 0, of pixels scaled to 0..1; divide those of pixels of 0..255 by 255"
            )
        return std

    @model_validator(mode="after")
    def _cuttable(self) -> "Manifest":
        sides = (self.resize,) if isinstance(self.resize, int) else self.resize or (self.input_size,)
        if not self.input_size <= min(sides) <= max(sides) <= LARGEST_SIDE:
            raise ValueError(
                f"resize is {self.resize}, and the square of input_size {self.input_size} is cut out of it; "
                f"set it to {self.input_size} to {LARGEST_SIDE}, or to such a height and width"
            )
        if not self.antialias and self.interpolation != "bilinear":
            raise ValueError("antialias may only be false where interpolation is bilinear")
        return self

    @model_validator(mode="after")
    def _exported(self) -> "Manifest":
        export = EXPORTS.get(self.engine)
        if export and getattr(self, export.field) is None:
            raise ValueError(f"engine {self.engine} needs {export.file} and its {export.field}")
        if self.engine == NCNN and (self.batch_size or 1) > 1:
            raise ValueError(f"batch_size is {self.batch_size}, but the engine {NCNN} takes one image; set it to 1")
        return self


class Bundle(NamedTuple):
    """A bundle as read from disk: `weights` and `exports`, by engine, are bytes whose SHA-256 was verified."""

    path: Path
    manifest: Manifest
    weights_path: Path
    weights: bytes
    reference: Optional[Reference] = None
    accuracy: Optional[Accuracy] = None
    exports: Mapping[str, bytes] = NOTHING_EXPORTED

    @property
    def is_safetensors(self) -> bool:
        """Whether the weights are a safetensors file, by its name, or by its begin: a length, and the JSON so long."""
        return self.weights_path.suffix == Path(SAFETENSORS).suffix or self.weights[8:9] == b"{"


class Findings(NamedTuple):
    """What images have shown of a model, where there were some."""

    reference: Optional[Reference] = None
    accuracy: Optional[Accuracy] = None


NO_FINDINGS = Findings()


def read_bundle(path: Path) -> Bundle:
    """Read a bundle with its reference and its accuracy, if it has them, and verify the checksum of its weights.

    Raises:
        BundleError: a file is missing, unreadable or malformed, or the weights are not those of the manifest.
    """
    bundle = read_model(path)
    if (path / REFERENCE).exists():
        bundle = bundle._replace(reference=read_reference(path / REFERENCE, bundle.manifest.classes))
    if (path / ACCURACY).exists():
        bundle = bundle._replace(accuracy=_read_accuracy(path / ACCURACY, bundle.manifest.weights_sha256))
    return bundle


def read_model(path: Path) -> Bundle:
    """Read a bundle but for its reference and accuracy, and verify the checksum of its weights; nothing is unpickled.

    Raises:
        BundleError: a file is missing, unreadable or malformed, or the weights are not those of the manifest.
    """
    manifest_path = path / MANIFEST
    fields = _parse_manifest(manifest_path, read_bytes(manifest_path))
    weights_path = _find_weights(path)
    weights = read_bytes(weights_path)
    sha256 = hashlib.sha256(weights).hexdigest()
    manifest = _validate(manifest_path, {"weights_sha256": sha256, **fields}, Manifest)
    if "weights_sha256" not in fields:
        beside = f"of the {weights_path.name} beside it it is {sha256}"
        raise BundleError(f"{manifest_path} lacks the field weights_sha256; {beside}.")
    _require_sha256(weights_path, sha256, manifest.weights_sha256)
    exports = {
        engine: _read_verified(path / export.file, getattr(manifest, export.field))
        for engine, export in EXPORTS.items()
        if getattr(manifest, export.field) is not None
    }
    return Bundle(path, manifest, weights_path, weights, exports=exports)


def _read_verified(path: Path, expected: str) -> bytes:
    content = read_bytes(path)
    _require_sha256(path, hashlib.sha256(content).hexdigest(), expected)
    return content


def _require_sha256(path: Path, sha256: str, expected: str) -> None:
    if sha256 != expected:
        raise BundleError(f"{path} has SHA-256 {sha256}, but {MANIFEST} expects {expected}.")


def read_reference(path: Path, classes: Sequence[str]) -> Reference:
    """Read the reference of a model with these classes.

    Raises:
        BundleError: the file is unreadable or malformed, or is about other classes.
    """
    reference = _validate(path, _parse_json(path), Reference)
    known = reference.ratios[PREDICTED_CLASS]
    if set(known) != set(classes):
        got, expected = ", ".join(sorted(known)), ", ".join(sorted(classes))
        raise BundleError(f"{path}: ratios.{PREDICTED_CLASS} has {got}, but {MANIFEST} has the classes {expected}.")
    return reference


def make_bundle(
    path: Path, weights: bytes, fields: Dict[str, object], exports: Mapping[str, bytes] = NOTHING_EXPORTED
) -> Bundle:
    """Return the bundle that is to be at `path`; `fields` are the manifest's but for the checksums.

    Raises:
        BundleError: a field is missing or has a value that is not allowed.
    """
    sha256 = hashlib.sha256(weights).hexdigest()
    sums = {"weights_sha256": sha256}
    sums.update({EXPORTS[engine].field: hashlib.sha256(content).hexdigest() for engine, content in exports.items()})
    manifest = _validate(path / MANIFEST, {**fields, **sums}, Manifest)
    bundle = Bundle(path, manifest, path / PICKLED, weights, exports=exports)
    return bundle._replace(weights_path=path / SAFETENSORS) if bundle.is_safetensors else bundle


def write_bundle(
    path: Path,
    weights: bytes,
    fields: Dict[str, object],
    findings: Findings = NO_FINDINGS,
    exports: Mapping[str, bytes] = NOTHING_EXPORTED,
) -> None:
    """Write a bundle at `path`, whole or not at all; `fields` are the manifest's but for the checksums.

    Raises:
        BundleError: a field is wrong, there is something at `path` already, or it cannot be written.
    """
    bundle = make_bundle(path, weights, fields, exports)
    refuse_existing(path)
    staging = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=str(path.parent)))
        staging.chmod(0o755)
        (staging / bundle.weights_path.name).write_bytes(weights)
        for engine, content in exports.items():
            (staging / EXPORTS[engine].file).write_bytes(content)
        text = yaml.safe_dump(bundle.manifest.model_dump(mode="json", exclude_unset=True), sort_keys=False)
        (staging / MANIFEST).write_text(text, encoding="utf-8")
        for name, found in ((REFERENCE, findings.reference), (ACCURACY, findings.accuracy)):
            if found is not None:
                write_json(staging / name, found)
        os.rename(staging, path)
    except OSError as error:
        raise BundleError(f"The bundle {path} cannot be written: {error.strerror}.") from error
    finally:
        if staging is not None:  # a rename has moved it away
            shutil.rmtree(staging, ignore_errors=True)


def refuse_existing(path: Path) -> None:
    """Raise BundleError when there is something at `path`; an empty directory is nothing."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise BundleError(f"{path} exists already and is not overwritten; remove it or choose another name.")


def read_bytes(path: Path) -> bytes:
    """Read a file whole, or raise BundleError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.") from error


def _find_weights(path: Path) -> Path:
    found = [path / name for name in (SAFETENSORS, PICKLED) if (path / name).exists()]
    if len(found) != 1:
        fault = f"has {SAFETENSORS} and {PICKLED}" if found else f"has neither {SAFETENSORS} nor {PICKLED}"
        raise BundleError(f"{path} {fault}, but one file of weights is expected.")
    return found[0]


def _parse_manifest(path: Path, text: bytes) -> Dict[str, object]:
    try:
        fields = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise BundleError(f"{path} is not valid YAML{where}.") from error
    return _require_mapping(path, fields)


def _read_accuracy(path: Path, weights_sha256: str) -> Accuracy:
    accuracy = _validate(path, _parse_json(path), Accuracy)
    if accuracy.weights_sha256 != weights_sha256:
        raise BundleError(
            f"{path} is about other weights, of SHA-256 {accuracy.weights_sha256}; remove it, or measure it again with "
            "model-server bundle check --labelled."
        )
    return accuracy


def _parse_json(path: Path) -> Dict[str, object]:
    text = read_bytes(path)
    try:
        fields = json.loads(text)
    except ValueError as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise BundleError(f"{path} is not valid JSON{where}.") from error
    return _require_mapping(path, fields)


def _require_mapping(path: Path, fields: object) -> Dict[str, object]:
    if not isinstance(fields, dict):
        raise BundleError(f"{path} holds a {type(fields).__name__}, but a mapping of fields is expected.")
    return fields


def _validate(path: Path, fields: Dict[str, object], model: Type[Model]) -> Model:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        problems = error.errors()
        # A misspelt field is an unknown one and a missing one.
        problem = next((other for other in problems if other["type"] == "extra_forbidden"), problems[0])
        field = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "missing":
            raise BundleError(f"{path} lacks the field {field}.") from error
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(field, model.model_fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(model.model_fields)}."
            raise BundleError(f"{path} has the unknown field {field}; {hint}") from error
        message = problem["msg"].replace("Value error, ", "")
        if not field:  # of several fields together
            raise BundleError(f"{path}: {message}.") from error
        got = repr(problem["input"])[:80]
        written_bare = problem["type"] == "string_type" and isinstance(problem["input"], (bool, int, float, date))
        quotes = "; put it in quotes" if written_bare else ""
        raise BundleError(f"{path}: {field} is {got}: {message[0].lower()}{message[1:]}{quotes}.") from error
