from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from model_server.commands.drawings import draw_fruit
from model_server.model.bundle import Bundle, read_bundle, write_bundle

torch = pytest.importorskip("torch")

from tests.unit.model_server.bundle_fields import FIELDS  # noqa: E402
from tests.unit.model_server.model.torchvision_reference.make import published_weights  # noqa: E402


def make_bundle(path: Path, state: Any, **changes: Any) -> Bundle:
    from model_server.model.loading import to_safetensors

    write_bundle(path, to_safetensors(state), {**FIELDS, **changes})
    return read_bundle(path)


def load(bundle: Bundle) -> Any:
    from model_server.model.classifier import Classifier

    return Classifier(bundle)


def test_the_published_weights_load_and_answer(tmp_path: Path) -> None:
    classifier = load(make_bundle(tmp_path / "bundle", published_weights()))
    assert classifier.ready
    pixels = classifier.preprocess(Image.new("RGB", (640, 480), "red"))
    assert pixels.shape == (1, 3, 150, 150)
    likely_class, confidence, each, _ = classifier.classify(pixels)
    probabilities = classifier.logits(pixels).softmax(0)
    torch.testing.assert_close(each, classifier.logits(pixels))
    assert likely_class == ("apple", "grapes", "lemon")[int(probabilities.argmax())]
    assert confidence == pytest.approx(float(probabilities.max()))
    assert 1 / 3 < confidence < 1


def test_logits_are_those_of_the_textbook(tmp_path: Path) -> None:
    """Fold, memory order and pooling change nothing: compare with ToTensor, Normalize and the layers as published."""
    from torch.nn import functional

    state = published_weights()
    classifier = load(make_bundle(tmp_path / "bundle", state))
    for seed in range(8):
        picture = draw_fruit("apple", Random(seed), 200 + 40 * seed, 300)
        x = classifier.preprocess(picture)[0] / 255
        mean, std = (torch.tensor(FIELDS[key]).view(3, 1, 1) for key in ("mean", "std"))
        x = ((x - mean) / std).unsqueeze(0)
        for layer in ("conv1", "conv2"):
            x = functional.conv2d(x, state[f"{layer}.weight"], state[f"{layer}.bias"])
            x = functional.max_pool2d(functional.relu(x), 2)
        x = x.flatten(1)
        for layer in ("fc1", "fc2", "fc3"):
            x = functional.linear(x, state[f"{layer}.weight"], state[f"{layer}.bias"])
            x = x if layer == "fc3" else functional.relu(x)
        torch.testing.assert_close(classifier.logits(classifier.preprocess(picture)), x[0], rtol=1e-4, atol=1e-4)


def test_a_batch_says_of_each_image_what_it_says_alone(tmp_path: Path) -> None:
    classifier = load(make_bundle(tmp_path / "bundle", published_weights()))
    fruits = ("apple", "grapes", "lemon", "apple")
    assert classifier.batch_size == len(fruits)
    images = [classifier.preprocess(draw_fruit(name, Random(name), 300, 200)) for name in fruits]
    for together, image in zip(classifier.classify_batch(images), images):
        alone = classifier.classify(image)
        assert together.likely_class == alone.likely_class
        assert together.confidence == pytest.approx(alone.confidence, abs=1e-5)


def test_batches_are_as_large_as_the_bundle_says_of_its_engine(tmp_path: Path) -> None:
    from model_server.model.classifier import Classifier
    from model_server.model.loading import to_safetensors

    assert load(make_bundle(tmp_path / "small", published_weights(), batch_size=2)).batch_size == 2
    fields = {**FIELDS, "engine": "onnxruntime", "batch_size": 1}
    write_bundle(tmp_path / "other", to_safetensors(published_weights()), fields, exports={"onnxruntime": b"exported"})
    assert Classifier(read_bundle(tmp_path / "other"), engine="torch").batch_size == 4


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (1, 65_000), (200_000, 1)])
def test_lines_of_pixels_are_classified(tmp_path: Path, size: Any) -> None:
    classifier = load(make_bundle(tmp_path / "bundle", published_weights()))
    pixels = classifier.preprocess(Image.new("RGB", size, (1, 2, 3)))
    assert pixels.shape == (1, 3, 150, 150)
    assert pixels[0, :, 70, 80].tolist() == [1, 2, 3]


def test_the_number_of_classes_and_the_size_are_the_bundles(tmp_path: Path) -> None:
    from model_server.model.fruit_classifier import FruitClassifier

    changes = {"classes": ["a", "b"], "input_size": 64}
    bundle = make_bundle(tmp_path / "bundle", FruitClassifier(2, 64).state_dict(), **changes)
    classifier = load(bundle)
    assert classifier.logits(classifier.preprocess(Image.new("RGB", (70, 90)))).shape == (2,)


def test_one_thread_per_worker(tmp_path: Path) -> None:
    load(make_bundle(tmp_path / "bundle", published_weights()))
    assert torch.get_num_threads() == 1
