import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("side", [6, 16, 17, 31, 150])
def test_pooled_convolution_is_the_convolution_and_its_pooling(side: int) -> None:
    from torch import nn
    from torch.nn import functional

    from model_server.architectures import PooledConvolution

    torch.manual_seed(0)
    conv = nn.Conv2d(3, 6, 5)
    x = torch.randn(2, 3, side, side)
    torch.testing.assert_close(PooledConvolution(conv)(x), functional.max_pool2d(conv(x), 2), rtol=1e-5, atol=1e-5)


def test_prepared_for_inference_it_takes_pixels_for_the_same_logits() -> None:
    from model_server.architectures import FruitClassifier

    torch.manual_seed(0)
    model = FruitClassifier(3, 64).eval()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = torch.randint(0, 256, (1, 3, 64, 64)).float()
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    with torch.inference_mode():
        expected = model((pixels / 255 - shift) / scale)
        model.prepare_for_inference(mean, std)
        torch.testing.assert_close(model(pixels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["fruit-classifier", "FruitClassifier", "torch_script"])
def test_a_slip_of_the_pen_is_seen_without_torchvision(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from model_server.architectures import ArchitectureError, build_network

    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ArchitectureError, match=rf"{architecture}'; did you mean (fruit_classifier|torchscript)\?$"):
        build_network(architecture, 3, 150, ())


def test_without_torchvision_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from model_server.architectures import ArchitectureError, build_network

    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(
        ArchitectureError, match=r"'resnet18'.*: set the role's variable model_server_torchvision to true"
    ):
        build_network("resnet18", 3, 224, ())


@pytest.mark.parametrize("source", ["raise RuntimeError('operator torchvision::nms does not exist')", ""])
def test_a_torchvision_of_another_torch_is_named(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from model_server.architectures import ArchitectureError, build_network

    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(source)
    (tmp_path / "torchvision" / "models.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ArchitectureError, match="the torchvision that is installed does not work with torch"):
        build_network("resnet18", 3, 224, ())
