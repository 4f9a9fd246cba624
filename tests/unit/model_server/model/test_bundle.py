import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_server.model.bundle import BundleError, Findings, Manifest, read_bundle, write_bundle
from model_server.model.reference import build
from tests.unit.model_server.bundle_fields import FIELDS

ROOT = Path(__file__).parents[4]
WEIGHTS = b"any bytes: nothing here is unpickled"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", WEIGHTS, FIELDS)
    return tmp_path / "bundle"


def edit(bundle: Path, **changes: Any) -> None:
    manifest = bundle / "model.yaml"
    fields = {**yaml.safe_load(manifest.read_text()), **changes}
    manifest.write_text(yaml.safe_dump({key: value for key, value in fields.items() if value is not None}))


def test_what_is_written_is_read(bundle: Path) -> None:
    read = read_bundle(bundle)
    assert read.weights == WEIGHTS
    assert read.manifest.classes == ("apple", "grapes", "lemon")
    assert read.manifest.weights_sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert (bundle.stat().st_mode & 0o777, (bundle / "model.yaml").stat().st_mode & 0o444) == (0o755, 0o444)


def test_bundles_of_earlier_releases_mean_what_they_meant(bundle: Path) -> None:
    assert yaml.safe_load((bundle / "model.yaml").read_text()).keys() == {*FIELDS, "weights_sha256"}
    read = read_bundle(bundle)
    assert (read.manifest.engine, read.manifest.batch_size, read.exports) == ("torch", None, {})


@pytest.mark.parametrize(
    ("engine", "file", "batch_size"), [("onnxruntime", "model.onnx", 4), ("ncnn", "model.ncnn.zip", 1)]
)
def test_the_exported_model_is_one_of_the_files(tmp_path: Path, engine: str, file: str, batch_size: int) -> None:
    path = tmp_path / "bundle"
    exports = {engine: b"exported"}
    write_bundle(path, WEIGHTS, {**FIELDS, "engine": engine, "batch_size": batch_size}, exports=exports)
    read = read_bundle(path)
    assert (read.manifest.engine, read.manifest.batch_size, read.exports) == (engine, batch_size, exports)

    (path / file).write_bytes(b"other")
    with pytest.raises(BundleError, match=rf"{file} has SHA-256 \w+, but model.yaml expects \w+\.$"):
        read_bundle(path)
    (path / file).unlink()
    with pytest.raises(BundleError, match=rf"{file} cannot be read: No such file or directory\.$"):
        read_bundle(path)
    edit(path, **{f"{file.split('.')[1]}_sha256": None})
    with pytest.raises(BundleError, match=rf"model.yaml: engine {engine} needs {file} and its {file[6:10]}_sha256\.$"):
        read_bundle(path)


def test_batches_for_an_engine_that_takes_none_are_refused(tmp_path: Path) -> None:
    fields = {**FIELDS, "engine": "ncnn", "batch_size": 2}
    with pytest.raises(BundleError, match=r"batch_size is 2, but the engine ncnn takes one image; set it to 1\.$"):
        write_bundle(tmp_path / "bundle", WEIGHTS, fields, exports={"ncnn": b"exported"})


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("engine", "tensorrt", r"engine is 'tensorrt': input should be 'torch', 'onnxruntime' or 'ncnn'\.$"),
        ("batch_size", 5, r"batch_size is 5: input should be less than or equal to 4\.$"),
    ],
)
def test_what_runs_the_model_is_checked(bundle: Path, field: str, value: Any, fault: str) -> None:
    edit(bundle, **{field: value})
    with pytest.raises(BundleError, match=fault):
        read_bundle(bundle)


def test_an_existing_bundle_is_kept(bundle: Path) -> None:
    with pytest.raises(BundleError, match="exists already and is not overwritten"):
        write_bundle(bundle, b"other", FIELDS)
    assert read_bundle(bundle).weights == WEIGHTS


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    write_bundle(tmp_path / "bundle", WEIGHTS, FIELDS)
    assert read_bundle(tmp_path / "bundle").weights == WEIGHTS


def test_nothing_is_left_of_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.rename", fail)
    with pytest.raises(BundleError, match=r"cannot be written: No space left on device\.$"):
        write_bundle(tmp_path / "bundle", WEIGHTS, FIELDS)
    assert list(tmp_path.iterdir()) == []


def test_other_weights_are_refused(bundle: Path) -> None:
    (bundle / "weights.pt").write_bytes(b"other")
    expected = hashlib.sha256(WEIGHTS).hexdigest()
    got = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(BundleError, match=f"weights.pt has SHA-256 {got}, but model.yaml expects {expected}.$"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("model.yaml", "model.yaml cannot be read: No such file or directory.$"),
        ("weights.pt", "bundle has neither weights.safetensors nor weights.pt, but one file of weights is expected.$"),
    ],
)
def test_a_missing_file_is_named(bundle: Path, name: str, fault: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=fault):
        read_bundle(bundle)


def test_two_files_of_weights_are_one_too_many(bundle: Path) -> None:
    (bundle / "weights.safetensors").touch()
    with pytest.raises(BundleError, match=r"bundle has weights\.safetensors and weights\.pt, but one file"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name: [", "is not valid YAML at line 1"),
        (b"\xff\xfe\xfd", "is not valid YAML"),
        (b"", "holds a NoneType, but a mapping"),
        (b"- a", "holds a list, but a mapping"),
    ],
)
def test_a_malformed_manifest_is_explained(bundle: Path, text: bytes, message: str) -> None:
    (bundle / "model.yaml").write_bytes(text)
    with pytest.raises(BundleError, match=f"model.yaml {message}"):
        read_bundle(bundle)


@pytest.mark.parametrize("field", [*FIELDS, "weights_sha256"])
def test_a_missing_field_is_named(bundle: Path, field: str) -> None:
    edit(bundle, **{field: None})
    with pytest.raises(BundleError, match=f"model.yaml lacks the field {field}[.,;]"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 1.0),
        ("name", ""),
        ("name", "../fruits"),
        ("name", "-fruits"),
        ("version", "1 of 2"),
        ("version", "1" * 65),
        ("classes", ["apple"]),
        ("classes", ["apple", "apple"]),
        ("input_size", 0),
        ("input_size", "wide"),
        ("mean", [0.5, 0.5]),
        ("mean", [123.7, 116.3, 103.5]),
        ("mean", [0.5, float("nan"), 0.5]),
        ("std", [0.2, 0.0, 0.2]),
        ("std", [58.4, 57.1, 57.4]),
        ("std", [0.2, float("inf"), 0.2]),
        ("weights_sha256", "abc"),
    ],
)
def test_a_bad_field_is_named(bundle: Path, field: str, value: object) -> None:
    edit(bundle, **{field: value})
    with pytest.raises(BundleError, match=rf"model\.yaml.* {field}[.\d]*( is .*)?\.$") as caught:
        read_bundle(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("input-size: 224", r"has the unknown field input-size; did you mean input_size\?$"),
        ("colour: red", r"has the unknown field colour; known are name, version, .*, ncnn_sha256\.$"),
        ("version: 1.0", r"version is 1\.0: input should be a valid string; put it in quotes\.$"),
        ("version: 2026-11-22", r"version is datetime.*: input should be a valid string; put it in quotes\.$"),
        ("classes: [yes, maybe]", r"classes\.0 is True: input should be a valid string; put it in quotes\.$"),
        (
            "mean: [123.7, 116.3, 103.5]",
            r"mean is .* pixels scaled to 0\.\.1; divide those of pixels of 0\.\.255 by 255\.$",
        ),
    ],
)
def test_a_misspelt_name_is_explained(bundle: Path, text: str, message: str) -> None:
    edit(bundle, **{text.split(":", maxsplit=1)[0]: None})
    with (bundle / "model.yaml").open("a") as manifest:
        manifest.write(text + "\n")
    with pytest.raises(BundleError, match="model.yaml:? " + message):
        read_bundle(bundle)


def test_a_manifest_without_checksum_is_given_it(bundle: Path) -> None:
    edit(bundle, weights_sha256=None)
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    with pytest.raises(BundleError, match=rf"of the weights\.pt beside it it is {sha256}\.$"):
        read_bundle(bundle)


def test_a_bundle_with_a_bad_field_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"model\.yaml: name is 'a b': only letters, digits"):
        write_bundle(tmp_path / "bundle", WEIGHTS, {**FIELDS, "name": "a b"})
    assert list(tmp_path.iterdir()) == []


def test_a_model_may_take_pixels_of_0_to_1_as_they_are(bundle: Path) -> None:
    edit(bundle, mean=[0, 0, 0], std=[1, 1, 1])
    assert read_bundle(bundle).manifest.std == (1, 1, 1)


def test_the_page_has_every_field_and_an_example_that_is_valid() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    fields = page.split("\n## Fields of `model.yaml`\n")[1].split("\n## ")[0]
    assert re.findall("^### `(.+)`$", fields, re.MULTILINE) == list(Manifest.model_fields)
    example = yaml.safe_load(fields.split("```yaml\n")[1].split("```")[0])
    assert list(example) == [field for field in Manifest.model_fields if field != "onnx_sha256"], "of one engine"
    Manifest.model_validate(example)
    lowest, highest = Manifest.model_fields["input_size"].metadata
    assert f"{lowest.ge} to {highest.le}" in fields.split("### `input_size`")[1]


def test_a_bundle_is_written_with_its_reference(tmp_path: Path) -> None:
    observed = [(0.1 * index, 0.2, 0.3, 0.04, 0.9, 5.0, 2.0, "lemon") for index in range(10)]
    reference = build(observed, FIELDS["classes"])
    write_bundle(tmp_path / "bundle", WEIGHTS, FIELDS, Findings(reference))
    assert read_bundle(tmp_path / "bundle").reference == reference
    assert (tmp_path / "bundle" / "reference.json").stat().st_mode & 0o444 == 0o444


def test_a_bundle_without_reference_has_none(bundle: Path) -> None:
    assert read_bundle(bundle).reference is None


def test_a_malformed_reference_is_named(bundle: Path) -> None:
    (bundle / "reference.json").write_text("{}")
    with pytest.raises(BundleError, match=r"bundle/reference\.json lacks the field images\.$"):
        read_bundle(bundle)
