"""What ONNX Runtime and ncnn have in common.

script/test runs these beside torchvision's: both want numpy, which the server does without.
"""

import io
import os
import sys
import zipfile
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")

from model_server.model import ncnn_network, onnx_runtime  # noqa: E402
from model_server.model.architectures import Normalised  # noqa: E402
from model_server.model.exporting import LOGITS, WITH_PROJECTIONS, EngineError  # noqa: E402

SIDE = 9  # odd: ncnn pads each channel in memory


class Engine(NamedTuple):
    name: str
    export: Any
    network: Any


ENGINES = (
    Engine("onnxruntime", onnx_runtime.export, onnx_runtime.OnnxNetwork),
    Engine("ncnn", ncnn_network.export, ncnn_network.NcnnNetwork),
)
NEEDED = {"onnxruntime": ("onnx", "onnxruntime"), "ncnn": ("pnnx", "ncnn")}


@pytest.fixture(params=ENGINES, ids=[engine.name for engine in ENGINES])
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    for package in NEEDED[chosen.name]:
        pytest.importorskip(package)
    return chosen


def network() -> Any:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(196, 3))
    return layers.eval().requires_grad_(False)


def pixels(count: int = 1) -> Any:
    torch.manual_seed(count)
    return (torch.rand(count, 3, SIDE, SIDE) * 255).contiguous(memory_format=torch.channels_last)


@pytest.fixture
def exported(engine: Engine) -> bytes:
    content: bytes = engine.export(network(), pixels().contiguous())
    return content


def test_logits_are_those_of_torch(engine: Engine, exported: bytes) -> None:
    served = engine.network(exported)
    with torch.inference_mode():
        for seed in (1, 2, 3):
            given = pixels(seed)[:1]
            torch.testing.assert_close(served(given), network()(given), rtol=1e-4, atol=1e-3)


def test_answers_keep_their_values_when_others_follow(engine: Engine, exported: bytes) -> None:
    served = engine.network(exported)
    first = served(pixels(1))
    kept = first.clone()
    for seed in range(20):
        served(pixels(seed + 1)[:1] + seed)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("count", [2, 4])
def test_onnx_runtime_takes_batches(count: int) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    served = onnx_runtime.OnnxNetwork(onnx_runtime.export(network(), pixels().contiguous()))
    with torch.inference_mode():
        torch.testing.assert_close(served(pixels(count)), network()(pixels(count)), rtol=1e-4, atol=1e-3)


def test_normalisation_is_exported_as_layers() -> None:
    normalised = Normalised(network(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).eval()
    with torch.inference_mode():
        torch.testing.assert_close(normalised.as_layers()(pixels()), normalised(pixels()), rtol=1e-5, atol=1e-5)


def test_a_file_tells_what_it_answers_with(engine: Engine, exported: bytes) -> None:
    both = engine.export(network(), pixels().contiguous(), WITH_PROJECTIONS)
    assert [engine.network(content).output for content in (exported, both)] == [LOGITS, WITH_PROJECTIONS]
    torch.testing.assert_close(engine.network(both)(pixels()), engine.network(exported)(pixels()))


def test_attention_is_exported_and_stays_as_it_was(engine: Engine) -> None:
    class Attention(torch.nn.MultiheadAttention):  # type: ignore[misc,name-defined]
        def forward(self, x: Any) -> Any:
            rows = x.flatten(2).transpose(1, 2)
            return super().forward(rows, rows, rows, need_weights=False)[0].mean(1)

    torch.manual_seed(0)
    layer = Attention(3, 1, batch_first=True).eval().requires_grad_(False)
    given = pixels().contiguous() / 255
    with torch.inference_mode():
        served = engine.network(engine.export(layer, given))
        torch.testing.assert_close(served(given), layer(given), rtol=1e-4, atol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled()


def test_it_has_no_threads_that_a_fork_would_lose(engine: Engine, exported: bytes) -> None:
    before = len(os.listdir("/proc/self/task"))
    engine.network(exported)(pixels())
    assert len(os.listdir("/proc/self/task")) == before


def test_a_damaged_file_is_explained(engine: Engine, exported: bytes) -> None:
    for damaged in (exported[: len(exported) // 2], b"", exported[: len(exported) // 2] + bytes(len(exported) // 2)):
        with pytest.raises(EngineError, match=r"cannot load it|it is no archive of "):
            engine.network(damaged)


@pytest.mark.parametrize(
    ("layers", "weights"),
    [(1, 0.5), (1, 0), (0.5, 1), (0, 1)],
    ids=["half_of_the_weights", "no_weights", "half_of_the_layers", "no_layers"],
)
def test_damaged_files_in_the_archive_are_explained(layers: float, weights: float) -> None:
    pytest.importorskip("pnnx")
    pytest.importorskip("ncnn")
    exported = ncnn_network.export(network(), pixels().contiguous())
    damaged = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(exported)) as archive, zipfile.ZipFile(damaged, "w") as writer:
        for name, share in ((ncnn_network.LAYERS, layers), (ncnn_network.WEIGHTS, weights)):
            content = archive.read(name)
            writer.writestr(name, content[: int(len(content) * share)])
    with pytest.raises(EngineError, match=r"^ncnn .* cannot load it; what it lacks stands above$"):
        ncnn_network.NcnnNetwork(damaged.getvalue())


def test_a_network_that_cannot_be_exported_is_explained(engine: Engine) -> None:
    class Strange(torch.nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x: Any) -> Any:
            return torch.special.bessel_j0(x)

    with pytest.raises(EngineError, match=r"cannot export it|cannot load it"):
        engine.network(engine.export(Strange(), pixels().contiguous()))


def test_what_is_not_installed_is_named(engine: Engine, exported: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in NEEDED[engine.name]:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineError, match=f"^{engine.name} is not installed$"):
        engine.network(exported)
    with pytest.raises(EngineError, match="is not installed"):
        engine.export(network(), pixels().contiguous())
