import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("architecture", ["fruit-classifier", "FruitClassifier", "torch_script"])
def test_a_misspelt_name_is_found_without_torchvision(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from model_server.model.architectures import ArchitectureError, build_network

    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ArchitectureError, match=rf"{architecture}'; did you mean (fruit_classifier|torchscript)\?$"):
        build_network(architecture, 3, 150, ())


def test_without_torchvision_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from model_server.model.architectures import ArchitectureError, build_network

    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(
        ArchitectureError, match=r"'resnet18'.*: set the role's variable model_server_torchvision to true"
    ):
        build_network("resnet18", 3, 224, ())


@pytest.mark.parametrize("source", ["raise RuntimeError('operator torchvision::nms does not exist')", ""])
def test_a_torchvision_of_another_torch_is_named(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from model_server.model.architectures import ArchitectureError, build_network

    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(source)
    (tmp_path / "torchvision" / "models.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ArchitectureError, match="the torchvision that is installed does not work with torch"):
        build_network("resnet18", 3, 224, ())
