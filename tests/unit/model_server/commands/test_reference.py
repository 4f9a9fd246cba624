import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image, ImageEnhance

from model_server.commands.cli import main
from model_server.commands.drawings import FRUITS, draw_fruit
from model_server.model.bundle import read_bundle, write_bundle
from tests.unit.model_server.bundle_fields import SMALL

CLASSES = ("apple", "grapes", "lemon")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    from model_server.model.fruit_classifier import FruitClassifier
    from model_server.model.loading import to_safetensors

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    write_bundle(path, to_safetensors(FruitClassifier(3, 32).state_dict()), SMALL)
    return path


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawings")
    for index in range(12):
        draw_fruit(list(FRUITS)[index % 3], Random(index), 64, 48).save(path / f"{index}.png")
    return path


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def run(bundle: Path, *images: Path) -> bytes:
    main(["reference", "--bundle", str(bundle), *map(str, images)])
    return (bundle / "reference.json").read_bytes()


def test_the_command_writes_what_the_server_reads(copy: Path, drawings: Path, capsys: Any) -> None:
    assert read_bundle(copy).reference is None
    run(copy, drawings)
    reference = read_bundle(copy).reference
    assert reference is not None
    assert reference.images == 12
    assert set(reference.ratios["predicted_class"]) == set(CLASSES)
    assert (copy / "reference.json").stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in copy.iterdir()) == ["model.yaml", "reference.json", "weights.safetensors"]
    said = capsys.readouterr().out
    assert "12 images are few" in said
    assert f"12 of 12 images described in {copy / 'reference.json'}" in said


def test_the_same_images_give_the_same_bytes_in_any_order(copy: Path, drawings: Path) -> None:
    files = sorted(drawings.iterdir())
    first = run(copy, drawings)
    assert run(copy, *reversed(files)) == first
    assert run(copy, files[3], drawings) == first


def test_darker_images_are_another_reference_and_replace_the_first(copy: Path, drawings: Path, tmp_path: Path) -> None:
    run(copy, drawings)
    bright = read_bundle(copy).reference
    assert bright is not None
    (tmp_path / "dark").mkdir()
    for file in drawings.iterdir():
        ImageEnhance.Brightness(Image.open(file)).enhance(0.3).save(tmp_path / "dark" / file.name)
    run(copy, tmp_path / "dark")
    dark = read_bundle(copy).reference
    assert dark is not None
    assert max(dark.edges["brightness"]) < max(bright.edges["brightness"]) / 2


def test_what_cannot_be_decoded_is_named_and_left_out(copy: Path, drawings: Path, tmp_path: Path, capsys: Any) -> None:
    clean = run(copy, drawings)
    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    assert run(copy, drawings, tmp_path / "damaged.jpg") == clean
    said = capsys.readouterr().out
    assert f"left out, because it cannot be decoded as an image: {tmp_path / 'damaged.jpg'}" in said
    assert "12 of 13 images described" in said


def test_what_makes_no_reference_ends_with_a_sentence(copy: Path, drawings: Path, tmp_path: Path) -> None:
    clean = run(copy, drawings)
    files = sorted(drawings.iterdir())
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    for number in range(10):
        (tmp_path / "damaged" / f"{number}.png").touch()

    def refused(*images: Path) -> str:
        with pytest.raises(SystemExit) as caught:
            run(copy, *images)
        return str(caught.value)

    assert refused(*files[:9]) == "reference: 9 images are too few; give 10 or more."
    assert refused(tmp_path / "none") == f"reference: {tmp_path / 'none'} does not exist."
    assert refused(drawings, tmp_path / "empty").startswith(f"reference: {tmp_path / 'empty'} has no image (*.jpg, ")
    assert refused(tmp_path / "damaged") == "reference: 0 images are left, too few; give 10 or more."
    assert refused(tmp_path / "damaged", *files[:9]).startswith("reference: 9 images are left")
    assert (copy / "reference.json").read_bytes() == clean


def test_something_that_is_no_bundle_is_named(tmp_path: Path, drawings: Path) -> None:
    with pytest.raises(SystemExit, match=r"^reference: .*model.yaml cannot be read: No such file or directory\.$"):
        run(tmp_path, drawings)


def test_a_damaged_reference_is_replaced(copy: Path, drawings: Path) -> None:
    clean = run(copy, drawings)
    (copy / "reference.json").write_text("{")
    assert run(copy, drawings) == clean


def test_the_older_one_stays_where_the_new_one_cannot_be_written(
    copy: Path, drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = run(copy, drawings)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(SystemExit, match=r"cannot be written to: No space left on device\.$"):
        run(copy, *sorted(drawings.iterdir())[:11])
    assert (copy / "reference.json").read_bytes() == clean
    assert len(list(copy.iterdir())) == 3
