from pathlib import Path
from random import Random
from typing import Any, Tuple

import pytest

from model_server.commands.cli import main
from model_server.commands.drawings import draw_fruit
from model_server.model.bundle import read_bundle

torch = pytest.importorskip("torch")


@pytest.fixture
def train_demo(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give the module with a training that is too short to be any good."""
    from model_server.commands import train_demo

    monkeypatch.setattr(train_demo, "TRAINING_IMAGES", 12)
    monkeypatch.setattr(train_demo, "HELD_OUT_IMAGES", 6)
    monkeypatch.setattr(train_demo, "EPOCHS", 1)
    monkeypatch.setattr(train_demo, "LOWEST_ACCURACY", 0.0)
    return train_demo


def test_drawings_are_balanced_and_normalised_to_learn_from(train_demo: Any) -> None:
    pixels, labels = train_demo.draw_images(6, Random(0))
    assert pixels.shape == (6, 3, 150, 150)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert 0 <= pixels.min() < 100 < pixels.max() <= 255
    images = train_demo.normalise(pixels)
    assert -2.2 < images.min() < 0 < images.max() < 2.7


def test_a_bundle_is_written_and_the_same_seed_gives_the_same(
    train_demo: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(name: str, *arguments: str) -> Tuple[str, bytes]:
        main(["train-demo", "--out", str(tmp_path / name), *arguments])
        reference = (tmp_path / name / "reference.json").read_bytes()
        return read_bundle(tmp_path / name).manifest.weights_sha256, reference

    first, again, other = train("first"), train("again"), train("other", "--seed", "1")
    assert first == again
    assert first != other
    assert "epoch 1/1" in capsys.readouterr().out


def test_what_is_written_can_be_served(train_demo: Any, tmp_path: Path) -> None:
    from model_server.model.classifier import Classifier

    main(["train-demo", "--out", str(tmp_path / "bundle")])
    classifier = Classifier(read_bundle(tmp_path / "bundle"))
    assert classifier.manifest.classes == ("apple", "grapes", "lemon")


def test_the_reference_is_what_the_server_sees_of_such_drawings(train_demo: Any, tmp_path: Path) -> None:
    """The bundle's reference is that of the drawings as files, sent through the server's own preprocessing."""
    from model_server.metrics.features import observe
    from model_server.model.classifier import Classifier
    from model_server.model.reference import PROJECTIONS, build

    main(["train-demo", "--out", str(tmp_path / "bundle")])
    bundle = read_bundle(tmp_path / "bundle")
    classifier, rng, observations = Classifier(bundle), Random("0 held out"), []
    for index in range(train_demo.HELD_OUT_IMAGES):
        size = rng.randrange(150, 260), rng.randrange(150, 260)
        picture = draw_fruit(train_demo.CLASSES[index % 3], rng, *size)
        pixels = classifier.preprocess(picture)
        observations.append(observe(pixels, *classifier.classify(pixels)))
    seen = build(observations, train_demo.CLASSES)
    assert bundle.reference is not None
    for feature, edges in seen.edges.items():
        near = 0.003 if feature in PROJECTIONS else 0.0  # they have finer steps, and a pixel may be one level off
        assert bundle.reference.edges[feature] == pytest.approx(edges, abs=near), feature
        assert feature in PROJECTIONS or bundle.reference.ratios[feature] == seen.ratios[feature]
    assert bundle.accuracy is not None
    assert bundle.accuracy.images == train_demo.HELD_OUT_IMAGES


def test_an_existing_bundle_is_refused_at_once(
    train_demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.yaml").touch()
    monkeypatch.setattr(train_demo, "train", None)
    with pytest.raises(SystemExit, match="exists already and is not overwritten"):
        main(["train-demo", "--out", str(tmp_path)])


def test_a_model_that_learnt_nothing_is_not_written(
    train_demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(seed: int) -> Tuple[object, float, object, object]:
        return object(), 0.9667, object(), object()

    monkeypatch.setattr(train_demo, "LOWEST_ACCURACY", 0.97)
    monkeypatch.setattr(train_demo, "train", train)
    with pytest.raises(SystemExit, match=r"reached 96\.7% on held-out drawings, but 97% are needed"):
        main(["train-demo", "--out", str(tmp_path / "bundle")])
    assert not (tmp_path / "bundle").exists()
