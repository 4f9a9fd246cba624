import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from model_server.commands.cli import main
from model_server.commands.drawings import draw_fruit
from model_server.model.bundle import Findings, read_bundle, write_bundle
from model_server.model.reference import build
from tests.unit.model_server.bundle_fields import SMALL

CLASSES = ("apple", "grapes", "lemon")


@pytest.fixture(scope="module")
def weights() -> bytes:
    """Make weights that answer "grapes" to everything."""
    torch = pytest.importorskip("torch")
    from model_server.model.fruit_classifier import FruitClassifier
    from model_server.model.loading import to_safetensors

    torch.manual_seed(0)
    state = FruitClassifier(3, 32).state_dict()
    state["fc3.weight"].zero_()
    state["fc3.bias"].copy_(torch.tensor([0.0, 1.0, 0.5]))
    return to_safetensors(state)


@pytest.fixture
def bundle(weights: bytes, tmp_path: Path) -> Path:
    observed = [(0.1 * index, 0.2, 0.3, 0.04, 0.9, 5.0, 2.0, "lemon") for index in range(10)]
    write_bundle(tmp_path / "bundle", weights, SMALL, Findings(build(observed, CLASSES)))
    return tmp_path / "bundle"


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Make three images of apples, two of grapes (one of them further down) and one of a lemon, beside other things."""
    folder = tmp_path / "labelled"
    for name, places in {"apple": ["1", "2", "3"], "grapes": ["1", "more/2"], "lemon": ["1"]}.items():
        for place in places:
            path = folder / name / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_fruit("apple", Random(0), 64, 48).save(path)
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "notes.txt").touch()
    return folder


def refused(*arguments: Any) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["bundle", *map(str, arguments)])
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_a_valid_bundle_is_described(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["bundle", "check", str(bundle)])
    said = capsys.readouterr().out.splitlines()
    sha256 = hashlib.sha256((bundle / "weights.safetensors").read_bytes()).hexdigest()
    assert said[:4] == [
        "model:        fruits 1.0",
        "architecture: fruit_classifier, for images of 32×32 pixels",
        f"weights:      0.2 MB, SHA-256 {sha256}",
        "classes:      3, as many as logits: apple, grapes, lemon",
    ]
    assert said[-1] == "reference:    10 images"


def test_a_bundle_without_reference_is_told_how_to_get_one(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "reference.json").unlink()
    main(["bundle", "check", str(bundle)])
    assert "none, so that drift will not be seen (model-server reference" in capsys.readouterr().out


def test_accuracy_is_that_of_the_labelled_images(
    bundle: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (labelled / "lemon" / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    main(["bundle", "check", str(bundle), "--labelled", str(labelled)])
    said = capsys.readouterr().out
    assert f"left out, because it cannot be decoded as an image: {labelled / 'lemon' / 'damaged.jpg'}" in said
    assert said.splitlines()[-5:] == [
        "accuracy:     33.3% of 6 images, 1 left out",
        "  apple: 0.0% of 3 images",
        "  grapes: 100.0% of 2 images",
        "  lemon: 0.0% of 1 image",
        f"written:      {bundle / 'accuracy.json'}, with which the server estimates its accuracy",
    ]
    accuracy = read_bundle(bundle).accuracy
    assert accuracy is not None
    assert (accuracy.images, accuracy.ratio) == (6, 2 / 6)


def test_a_folder_that_is_not_labelled_is_explained(bundle: Path, labelled: Path, tmp_path: Path) -> None:
    def check(folder: Path) -> str:
        return refused("check", bundle, "--labelled", folder)

    none = tmp_path / "none"
    assert check(none) == f"bundle: {none} is not a directory."
    apples = labelled / "apple"
    assert check(apples) == f"bundle: {apples} has no directory that is named after a class: apple, grapes, lemon."
    kiwi = labelled / "kiwi"
    kiwi.mkdir()
    assert check(labelled) == (
        f"bundle: {kiwi} is named after no class of the model; its classes are apple, grapes, lemon."
    )
    kiwi.rename(labelled / "apple" / "kiwi")
    shutil.rmtree(labelled / "lemon")
    (labelled / "lemon").mkdir()
    assert check(labelled).startswith(f"bundle: {labelled / 'lemon'} has no image (*.jpg, ")
    for path in labelled.rglob("*.png"):
        path.write_bytes(b"")
    (labelled / "lemon" / "1.jpg").touch()
    assert check(labelled) == f"bundle: {labelled} has no image that can be decoded."


def test_what_is_wrong_with_a_bundle_is_one_sentence_and_status_1(bundle: Path) -> None:
    """As the role sees it: the command line itself, whose errors come from several modules."""
    (bundle / "weights.safetensors").write_bytes(b"other")
    command = [sys.executable, "-m", "model_server", "bundle", "check", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"bundle: {bundle / 'weights.safetensors'} has SHA-256 ")
    assert done.stderr.count("\n") == 1

    (bundle / "model.yaml").write_text(
        yaml.safe_dump({**SMALL, "classes": list(CLASSES), "mean": [0, 0, 0], "std": [1, 1, 1]})
        + f"weights_sha256: {hashlib.sha256(b'other').hexdigest()}\n"
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"bundle: {bundle / 'weights.safetensors'} is not a safetensors file" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_torch_it_is_said(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "model_server.model.classifier", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert refused("check", bundle) == "bundle: PyTorch is not installed in this Python environment."


def test_an_archive_holds_the_bundle_and_nothing_of_the_machine(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (bundle / "model.yaml").open("a") as manifest:
        manifest.write("# trained on a Sunday\n")
    (bundle / "notes.txt").touch()
    archive = tmp_path / "fruits.tar.gz"
    main(["bundle", "pack", str(bundle), str(archive)])
    with tarfile.open(archive, "r:gz") as tar:
        entries = tar.getmembers()
        contents = {entry.name: tar.extractfile(entry).read() for entry in entries}  # type: ignore[union-attr]
    assert [entry.name for entry in entries] == ["model.yaml", "reference.json", "weights.safetensors"]
    assert {(entry.isreg(), entry.mode, entry.uid, entry.uname) for entry in entries} == {(True, 0o644, 0, "root")}
    assert contents == {name: (bundle / name).read_bytes() for name in contents}
    said = capsys.readouterr().out
    assert f"model_server_bundle: {archive} #" in said
    assert f"model_server_bundle_sha256: {hashlib.sha256(archive.read_bytes()).hexdigest()}\n" in said
    assert "torchvision" not in said
    assert archive.stat().st_mode & 0o777 == 0o644


def test_the_same_bundle_gives_the_same_archive(bundle: Path, tmp_path: Path) -> None:
    main(["bundle", "pack", str(bundle), str(tmp_path / "first.tar.gz")])
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    for path in copy.iterdir():
        path.chmod(0o600)
        os.utime(path, (1, 1))
    main(["bundle", "pack", str(copy), str(tmp_path / "second.tgz")])
    assert (tmp_path / "first.tar.gz").read_bytes() == (tmp_path / "second.tgz").read_bytes()


def test_a_packed_bundle_without_reference_is_whole(bundle: Path, tmp_path: Path) -> None:
    (bundle / "reference.json").unlink()
    main(["bundle", "pack", str(bundle), str(tmp_path / "fruits.tar.gz")])
    with tarfile.open(tmp_path / "fruits.tar.gz") as tar:
        assert tar.getnames() == ["model.yaml", "weights.safetensors"]


def test_an_archive_that_is_there_is_kept(bundle: Path, tmp_path: Path) -> None:
    archive = tmp_path / "fruits.tar.gz"
    archive.write_bytes(b"precious")
    assert refused("pack", bundle, archive).startswith(f"bundle: {archive} exists already and is not overwritten")
    assert archive.read_bytes() == b"precious"


def test_a_bundle_that_cannot_be_served_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    (bundle / "reference.json").write_text("{}")
    assert "reference.json lacks the field images" in refused("pack", bundle, tmp_path / "fruits.tar.gz")
    assert not (tmp_path / "fruits.tar.gz").exists()


def test_nothing_is_left_of_an_archive_that_cannot_be_written(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    sentence = refused("pack", bundle, tmp_path / "fruits.tar.gz")
    assert sentence == f"bundle: {tmp_path / 'fruits.tar.gz'} cannot be written: No space left on device."
    assert list(tmp_path.iterdir()) == [bundle]


def create(tmp_path: Path, weights: bytes, *more: str) -> Path:
    (tmp_path / "trained.pth").write_bytes(weights)
    about = ["--name", "fruits", "--version", "1.0", "--architecture", "fruit_classifier", "--input-size", "32"]
    given = ["--weights", str(tmp_path / "trained.pth"), *about, "--classes", *CLASSES, *more]
    main(["bundle", "create", str(tmp_path / "bundle"), *given])
    return tmp_path / "bundle"


def test_a_bundle_is_made_of_trained_weights(
    weights: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = read_bundle(create(tmp_path, weights, "--mean", "0.5", "0.4", "0.3"))
    assert made.weights == weights
    assert made.manifest.classes == CLASSES
    assert made.manifest.mean == (0.5, 0.4, 0.3)
    assert made.manifest.std == (0.229, 0.224, 0.225)  # ImageNet's, as nearly all networks are trained
    assert capsys.readouterr().out.endswith(f"written: {tmp_path / 'bundle'}\n")


def test_a_bundle_says_how_images_are_scaled(
    weights: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--resize", "40", "50", "--no-antialias", "--exif-orientation")
    manifest = read_bundle(create(tmp_path, weights, *options)).manifest
    assert (manifest.resize, manifest.interpolation) == ((40, 50), "bilinear")
    assert (manifest.antialias, manifest.exif_orientation) == (False, True)
    told = "32×32 pixels, cut out of images that are scaled to 50×40 pixels, without antialias, turned as EXIF says"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["architecture", "classes"])
def test_what_neither_an_option_nor_a_preset_says_is_asked_for(weights: bytes, tmp_path: Path, missing: str) -> None:
    given = {"architecture": ["fruit_classifier"], "classes": CLASSES}
    del given[missing]
    (tmp_path / "weights").write_bytes(weights)
    more = [text for name, values in given.items() for text in (f"--{name}", *values)]
    named = ("--weights", tmp_path / "weights", "--name", "a", "--version", "1")
    sentence = refused("create", tmp_path / "bundle", *named, *more)
    assert sentence == f"bundle: --{missing} is missing; give it, or --preset with weights of torchvision."


def test_a_pickled_state_dict_becomes_safetensors(
    weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load

    pickled = io.BytesIO()
    torch.save(load(weights), pickled)
    monkeypatch.setenv("MODEL_SERVER_ALLOW_PICKLE", "true")  # torch before 2.6 refuses it otherwise
    made = create(tmp_path, pickled.getvalue())
    assert sorted(path.name for path in made.iterdir()) == ["model.yaml", "weights.safetensors"]
    assert read_bundle(made).weights == weights


def test_torch_that_a_pickle_can_trick_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.5.1+cpu"))
    pickled = io.BytesIO()
    torch.save({"fc1.bias": torch.zeros(1)}, pickled)
    with pytest.raises(SystemExit, match=r"trained.pth could run code in torch 2.5.1.* set MODEL_SERVER_ALLOW_PICKLE"):
        create(tmp_path, pickled.getvalue())
    monkeypatch.setenv("MODEL_SERVER_ALLOW_PICKLE", "true")
    with pytest.raises(SystemExit, match=r"trained.pth does not fit fruit_classifier"):
        create(tmp_path, pickled.getvalue())


def test_many_classes_come_from_a_file(weights: bytes, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("granny smith\ngrapes\nlemon\n")
    made = read_bundle(create(tmp_path, weights, "--classes", f"@{tmp_path / 'classes.txt'}"))
    assert made.manifest.classes == ("granny smith", "grapes", "lemon")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--std", "58", "57", "57"], "model.yaml: std is .* divide those of pixels of 0..255 by 255"),
        (["--resize", "20"], "model.yaml: resize is 20, and the square of input_size 32 .* set it to 32 to 4096"),
        (["--resize", "20", "30", "40"], "model.yaml: resize"),
        (["--interpolation", "bicubic", "--no-antialias"], "antialias may only be false where interpolation is bi"),
        (["--classes", "apple", "lemon"], "fc3.weight has the shape .* but model.yaml expects"),
        (["--weights", "nowhere.pt"], "^bundle: nowhere.pt cannot be read: No such file or directory.$"),
    ],
)
def test_a_bundle_that_could_not_be_served_is_not_made(weights: bytes, tmp_path: Path, more: Any, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        create(tmp_path, weights, *more)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("softmax", [True, False])
def test_probabilities_in_place_of_logits_are_pointed_out(
    softmax: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    layers = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3)]
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Sequential(*layers, *[torch.nn.Softmax(1)] * softmax)), buffer)
    write_bundle(tmp_path / "bundle", buffer.getvalue(), {**SMALL, "architecture": "torchscript"})
    main(["bundle", "check", str(tmp_path / "bundle")])
    assert ("look like probabilities" in capsys.readouterr().out) == softmax
