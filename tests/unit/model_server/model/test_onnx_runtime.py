"""script/test runs these beside torchvision's: ONNX Runtime wants numpy, which the server does without."""

import os
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from model_server.model.onnx_runtime import LOGITS, WITH_PROJECTIONS, OnnxError, OnnxNetwork, export  # noqa: E402


def network() -> Any:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3))
    return layers.eval().requires_grad_(False)


def pixels(count: int) -> Any:
    torch.manual_seed(count)
    return (torch.rand(count, 3, 8, 8) * 255).contiguous(memory_format=torch.channels_last)


@pytest.fixture
def exported() -> bytes:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return export(network(), pixels(1).contiguous())


@pytest.mark.parametrize("count", [1, 2, 4])
def test_logits_are_those_of_torch(exported: bytes, count: int) -> None:
    given = pixels(count)
    with torch.inference_mode():
        torch.testing.assert_close(OnnxNetwork(exported)(given), network()(given), rtol=1e-4, atol=1e-3)


def test_a_file_tells_what_it_answers_with(exported: bytes) -> None:
    both = export(network(), pixels(1).contiguous(), WITH_PROJECTIONS)
    assert [OnnxNetwork(onnx).output for onnx in (exported, both)] == [LOGITS, WITH_PROJECTIONS]
    torch.testing.assert_close(OnnxNetwork(both)(pixels(2)), OnnxNetwork(exported)(pixels(2)))


def test_attention_is_exported_and_stays_as_it_was(exported: bytes) -> None:
    class Attention(torch.nn.MultiheadAttention):  # type: ignore[misc,name-defined]
        def forward(self, x: Any) -> Any:
            return super().forward(x, x, x, need_weights=False)[0]

    torch.manual_seed(0)
    layer = Attention(8, 2, batch_first=True).eval().requires_grad_(False)
    given = torch.rand(1, 5, 8)
    with torch.inference_mode():
        torch.testing.assert_close(OnnxNetwork(export(layer, given))(given), layer(given), rtol=1e-4, atol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled()


def test_it_has_no_threads_that_a_fork_would_lose(exported: bytes) -> None:
    before = len(os.listdir("/proc/self/task"))
    OnnxNetwork(exported)(pixels(1))
    assert len(os.listdir("/proc/self/task")) == before


def test_a_damaged_file_is_explained(exported: bytes) -> None:
    with pytest.raises(OnnxError, match="cannot load it: "):
        OnnxNetwork(exported[: len(exported) // 2])


def test_a_network_that_cannot_be_exported_is_explained(exported: bytes) -> None:
    class Strange(torch.nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x: Any) -> Any:
            return torch.special.bessel_j0(x)

    with pytest.raises(OnnxError, match="cannot export it: "):
        export(Strange(), pixels(1))
