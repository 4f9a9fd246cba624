"""A bundle: the directory that holds one model.

`model.yaml` is about it, `weights.pt` its state dict, and `reference.json`, which may be absent, the reference that
its requests are compared with.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Dict, NamedTuple, Optional, Sequence, Tuple, Type, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from model_server.reference import PREDICTED_CLASS, Reference, write_reference

MANIFEST = "model.yaml"
WEIGHTS = "weights.pt"
REFERENCE = "reference.json"

Model = TypeVar("Model", bound=BaseModel)


class BundleError(ValueError):
    """A bundle that cannot be used; the message is one sentence that names the file, what it has and what it should."""


class Manifest(BaseModel):
    """What `model.yaml` says.

    `classes` are in the order of the model's outputs. `input_size` is the side of the square input in
    pixels; `mean` and `std` are per channel (red, green, blue), of pixel values scaled to 0..1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    name: str = Field(min_length=1)
    version: str = Field(min_length=1)
    architecture: str = Field(min_length=1)
    classes: Tuple[str, ...] = Field(min_length=2)
    input_size: int = Field(ge=16, le=4096)
    mean: Tuple[float, float, float]
    std: Tuple[float, float, float]
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: Tuple[str, ...]) -> Tuple[str, ...]:
        if len(set(classes)) < len(classes) or not all(classes):
            raise ValueError("class names must be distinct and not empty")
        return classes

    @field_validator("std")
    @classmethod
    def _positive(cls, std: Tuple[float, float, float]) -> Tuple[float, float, float]:
        if min(std) <= 0:
            raise ValueError("every standard deviation must be above 0")
        return std


class Bundle(NamedTuple):
    """A bundle as read from disk: `weights` are the bytes whose SHA-256 was verified."""

    path: Path
    manifest: Manifest
    weights: bytes
    reference: Optional[Reference] = None


def read_bundle(path: Path) -> Bundle:
    """Read a bundle with its reference, if it has one, and verify the checksum of its weights.

    Raises:
        BundleError: a file is missing, unreadable or malformed, or the weights are not those of the manifest.
    """
    bundle = read_model(path)
    if not (path / REFERENCE).exists():
        return bundle
    return bundle._replace(reference=read_reference(path / REFERENCE, bundle.manifest.classes))


def read_model(path: Path) -> Bundle:
    """Read a bundle but for its reference, and verify the checksum of its weights, without unpickling anything.

    Raises:
        BundleError: a file is missing, unreadable or malformed, or the weights are not those of the manifest.
    """
    manifest_path, weights_path = path / MANIFEST, path / WEIGHTS
    manifest = _parse_manifest(manifest_path, _read(manifest_path))
    weights = _read(weights_path)
    sha256 = hashlib.sha256(weights).hexdigest()
    if sha256 != manifest.weights_sha256:
        raise BundleError(f"{weights_path} has SHA-256 {sha256}, but {MANIFEST} expects {manifest.weights_sha256}.")
    return Bundle(path, manifest, weights)


def read_reference(path: Path, classes: Sequence[str]) -> Reference:
    """Read the reference of a model with these classes.

    Raises:
        BundleError: the file is unreadable or malformed, or is about other classes.
    """
    text = _read(path)
    try:
        fields = json.loads(text)
    except ValueError as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise BundleError(f"{path} is not valid JSON{where}.") from error
    reference = _validate(path, fields, Reference)
    known = reference.ratios[PREDICTED_CLASS]
    if set(known) != set(classes):
        got, expected = ", ".join(sorted(known)), ", ".join(sorted(classes))
        raise BundleError(f"{path}: ratios.{PREDICTED_CLASS} has {got}, but {MANIFEST} has the classes {expected}.")
    return reference


def make_bundle(path: Path, weights: bytes, fields: Dict[str, object]) -> Bundle:
    """Return the bundle that is to be at `path`; `fields` are the manifest's but for `weights_sha256`."""
    sha256 = hashlib.sha256(weights).hexdigest()
    return Bundle(path, Manifest.model_validate({**fields, "weights_sha256": sha256}), weights)


def write_bundle(path: Path, weights: bytes, fields: Dict[str, object], reference: Optional[Reference] = None) -> None:
    """Write a bundle at `path`, whole or not at all; `fields` are the manifest's but for `weights_sha256`.

    Raises:
        BundleError: there is something at `path` already, or it cannot be written.
    """
    manifest = make_bundle(path, weights, fields).manifest
    refuse_existing(path)
    staging = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=str(path.parent)))
        staging.chmod(0o755)
        (staging / WEIGHTS).write_bytes(weights)
        text = yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False)
        (staging / MANIFEST).write_text(text, encoding="utf-8")
        if reference is not None:
            write_reference(staging / REFERENCE, reference)
        os.rename(staging, path)
    except OSError as error:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        raise BundleError(f"The bundle {path} cannot be written: {error.strerror}.") from error


def refuse_existing(path: Path) -> None:
    """Raise BundleError when there is something at `path`; an empty directory is nothing."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise BundleError(f"{path} exists already and is not overwritten; remove it or choose another directory.")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.") from error


def _parse_manifest(path: Path, text: bytes) -> Manifest:
    try:
        fields = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise BundleError(f"{path} is not valid YAML{where}.") from error
    return _validate(path, fields, Manifest)


def _validate(path: Path, fields: object, model: Type[Model]) -> Model:
    if not isinstance(fields, dict):
        raise BundleError(f"{path} holds a {type(fields).__name__}, but a mapping of fields is expected.")
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "missing":
            raise BundleError(f"{path} lacks the field {field}.") from error
        got = repr(problem["input"])[:80]
        raise BundleError(f"{path}: {field} is {got}: {problem['msg'][0].lower()}{problem['msg'][1:]}.") from error
