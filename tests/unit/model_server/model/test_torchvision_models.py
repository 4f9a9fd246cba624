"""torchvision's classification models as bundles.

script/test runs these in a process of their own: torchvision wants numpy, which the server does without.
"""

import importlib.util
import shlex
import warnings
from pathlib import Path
from random import Random
from typing import Any, Dict

import pytest

from model_server.commands.cli import main
from model_server.commands.drawings import draw_fruit
from model_server.model.bundle import BundleError, read_bundle, write_bundle

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed", allow_module_level=True)

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its decoders may lack their libraries
    from torchvision import models

from model_server.model.loading import load_model, to_safetensors
from model_server.model.reference import PROJECTIONS

CLASSES = ("apple", "grapes", "lemon")
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def trained(name: str, **options: Any) -> Any:
    """Return a model whose batch normalisation has seen something, and so does something."""
    torch.manual_seed(0)
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # the default takes seconds
    model = models.get_model(name, weights=None, num_classes=len(CLASSES), **options)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def load(path: Path, model: Any, architecture: str, input_size: int, **changes: Any) -> Any:
    fields: Dict[str, object] = {
        "name": "fruits",
        "version": "1.0",
        "architecture": architecture,
        "classes": CLASSES,
        "input_size": input_size,
    }
    write_bundle(path, to_safetensors(model.state_dict()), {**fields, **IMAGENET, **changes})
    return load_model(read_bundle(path))


def pixels(size: int) -> Any:
    torch.manual_seed(1)
    return torch.randint(0, 256, (1, 3, size, size)).float().contiguous(memory_format=torch.channels_last)


def normalised(size: int) -> Any:
    mean, std = (torch.tensor(IMAGENET[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (pixels(size) / 255 - mean) / std


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("resnet18", {}, 128),
        ("mobilenet_v3_small", {}, 224),
        ("efficientnet_b0", {}, 96),
        ("squeezenet1_1", {}, 64),
        ("swin_t", {}, 64),
        ("googlenet", {"aux_logits": True}, 96),
        ("googlenet", {"aux_logits": False}, 96),
        ("inception_v3", {"aux_logits": True}, 128),
        ("inception_v3", {"aux_logits": False}, 128),
    ],
)
def test_logits_are_those_of_torchvision(name: str, options: Dict[str, Any], size: int, tmp_path: Path) -> None:
    model = trained(name, **options)
    with torch.inference_mode():
        expected = model(normalised(size))
        outputs = load(tmp_path / "bundle", model, name, size)(pixels(size))
    assert expected.shape == (1, 3)
    assert outputs.shape == (1, 3 if name.startswith("squeezenet") else 3 + len(PROJECTIONS))
    scale = float(expected.abs().max())  # of untrained networks it may be tiny
    torch.testing.assert_close(outputs[:, :3], expected, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_that_undo_the_normalisation_are_served_with_halves(name: str, tmp_path: Path) -> None:
    """Their pretrained weights come with transform_input, of which a state dict says nothing; docs/models.md does."""
    model = trained(name, transform_input=True, aux_logits=False)
    halves = (0.5, 0.5, 0.5)
    with torch.inference_mode():
        expected = model(normalised(128))
        outputs = load(tmp_path / "bundle", model, name, 128, mean=halves, std=halves)(pixels(128))
    torch.testing.assert_close(outputs[:, :3], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("resnet-18", r"'resnet-18', neither fruit_classifier nor torchscript nor .* did you mean resnet18 or .*\?$"),
        ("MobileNet_V3_Small", r"did you mean mobilenet_v3_small or .*\?$"),
        ("fcn_resnet50", "'fcn_resnet50', neither .* nor a classification model of torchvision; did you mean"),
        ("perceptron", r"; known are torchvision's, like resnet18\.$"),
    ],
)
def test_an_unknown_architecture_is_explained(architecture: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=rf"model\.yaml: architecture is .*{message}"):
        load(tmp_path / "bundle", trained("squeezenet1_1"), architecture, 64)


@pytest.mark.parametrize(
    ("name", "model", "size", "message"),
    [
        ("inception_v3", "inception_v3", 32, "inception_v3 fails with an image of 32×32 pixels, the input_size of"),
        ("vit_b_32", "vit_b_32", 256, r"input_size of model\.yaml: Wrong image height! Expected 224 but got 256"),
        ("resnet18", "resnet34", 64, r"does not fit resnet18: it has layer1\.2\.bn1\.bias, .* more too many"),
        ("resnet34", "resnet18", 64, r"does not fit resnet34: it lacks layer1\.2\.conv1\.weight, .* and \d+ more\.$"),
    ],
)
def test_what_does_not_fit_is_explained(name: str, model: str, size: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=message):
        load(tmp_path / "bundle", trained(model), name, size)


def test_the_commands_of_the_page_lead_from_weights_to_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[4] / "docs" / "models.md").read_text(encoding="utf-8")
    block = page.split("```sh\n")[1].split("```")[0].replace("\\\n", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_SERVER_ALLOW_PICKLE", "true")  # the page's own torch is newer than 2.5
    torch.save(trained("resnet18").state_dict(), "trained.pt")
    for place in ("typical-images", *(f"validation/{name}" for name in CLASSES)):
        Path(place).mkdir(parents=True)
        for number in range(10):
            draw_fruit("apple", Random(number), 64, 48).save(f"{place}/{number}.png")
    for line in block.splitlines():
        command, *arguments = shlex.split(line)
        assert command == "model-server"
        main(arguments)
    said = capsys.readouterr().out
    assert "architecture: resnet18, for images of 224×224 pixels" in said
    assert "of 30 images" in said
    assert ("model_server_torchvision: true" in said) == ("engine:       torch" in said), "the others do without"
    assert Path("fruits-1.0.tar.gz").exists()
