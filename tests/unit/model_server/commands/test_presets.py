"""Presets, held to torchvision's own transforms; script/test runs these in a process of their own, with torchvision."""

import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model_server.commands.cli import main
from model_server.model.bundle import read_bundle
from model_server.model.preprocessing import decode, decoding_of

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed", allow_module_level=True)

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its decoders may lack their libraries
    from torchvision import models
    from torchvision.transforms import functional

PICTURES = sorted((Path(__file__).parents[1] / "model" / "torchvision_reference").glob("*.jpg"))
PICTURES += sorted((Path(__file__).parents[4] / "load_test" / "images").glob("*_*x*.jpg"))[:6]


def create(directory: Path, *options: str, architecture: str = "") -> Any:
    """Write a bundle of weights that nobody has trained, and return its classifier."""
    from model_server.model.classifier import Classifier

    more = {"init_weights": False} if architecture == "googlenet" else {}  # the default takes seconds
    network = models.get_model(architecture, weights=None, **more)
    torch.save(network.state_dict(), directory / "weights.pt")
    made = directory / "bundle"
    named = ("--name", "preset", "--version", "1.0", "--weights", str(directory / "weights.pt"), "--engine", "torch")
    main(["bundle", "create", str(made), *named, *options])
    return Classifier(read_bundle(made))


@pytest.fixture(autouse=True)
def _own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVER_ALLOW_PICKLE", "true")


@pytest.mark.parametrize(
    ("weights", "architecture", "resize", "interpolation"),
    [
        ("MobileNet_V3_Small_Weights.DEFAULT", "mobilenet_v3_small", 256, "bilinear"),
        ("ResNet50_Weights.DEFAULT", "resnet50", 232, "bilinear"),
        ("EfficientNet_B0_Weights.IMAGENET1K_V1", "efficientnet_b0", 256, "bicubic"),
    ],
)
def test_a_bundle_sees_what_the_transforms_of_the_weights_see(
    weights: str, architecture: str, resize: int, interpolation: str, tmp_path: Path
) -> None:
    classifier = create(tmp_path, "--preset", weights, architecture=architecture)
    manifest = classifier.manifest
    assert (manifest.architecture, manifest.input_size, manifest.resize) == (architecture, 224, resize)
    assert (manifest.interpolation, len(manifest.classes), manifest.classes[0]) == (interpolation, 1000, "tench")

    how = models.get_weight(weights).transforms()
    assert (list(manifest.mean), list(manifest.std)) == (how.mean, how.std)
    for picture in PICTURES:
        data = picture.read_bytes()
        image = functional.resize(
            Image.open(picture).convert("RGB"), how.resize_size, how.interpolation, antialias=how.antialias
        )
        expected = functional.pil_to_tensor(functional.center_crop(image, how.crop_size))
        seen = classifier.preprocess(decode(data, 20_000_000, decoding_of(manifest, "exact")))[0]
        assert (seen - expected).abs().max() <= (8 if interpolation == "bicubic" else 2), picture.stem
        assert (seen - expected).abs().mean() < 0.5, picture.stem


def test_networks_that_normalise_by_themselves_get_other_figures(tmp_path: Path) -> None:
    manifest = create(tmp_path, "--preset", "GoogLeNet_Weights.DEFAULT", architecture="googlenet").manifest

    assert manifest.mean == manifest.std == (0.5, 0.5, 0.5)


def test_options_beat_the_preset(tmp_path: Path) -> None:
    options = ("--preset", "ResNet18_Weights.DEFAULT", "--input-size", "128", "--mean", "0.5", "0.5", "0.5")
    manifest = create(tmp_path, *options, architecture="resnet18").manifest

    assert (manifest.architecture, manifest.input_size, manifest.resize) == ("resnet18", 128, None)
    assert manifest.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ("ResNet50_Weights.DEFUALT", "no such weights for a classifier; did you mean ResNet50_Weights.DEFAULT?"),
        ("resnet", "no such weights for a classifier; they are named like ResNet50_Weights.DEFAULT."),
    ],
)
def test_unknown_weights_are_explained(weights: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=re.escape(sentence)):
        create(tmp_path, "--preset", weights, architecture="resnet18")
