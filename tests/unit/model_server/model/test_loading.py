import io
import sys
import zipfile
from pathlib import Path
from random import Random
from typing import Any, Callable, Dict, Iterator, Tuple

import pytest

from model_server.model.bundle import Bundle, BundleError, Manifest, read_bundle, write_bundle
from model_server.model.bundle import make_bundle as bundle_of

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from tests.unit.model_server.bundle_fields import FIELDS, SMALL  # noqa: E402
from tests.unit.model_server.model.torchvision_reference.make import published_weights  # noqa: E402

# PyTorch would have everyone leave TorchScript; files of it are out there.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def make_bundle(path: Path, weights: bytes, **changes: Any) -> Bundle:
    write_bundle(path, weights, {**FIELDS, **changes})
    return read_bundle(path)


def saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def load(bundle: Bundle) -> Any:
    from model_server.model.loading import load_model

    return load_model(bundle, allow_pickle=True)  # torch before 2.6 refuses it otherwise


def without(name: str) -> Dict[str, Any]:
    state = published_weights()
    del state[name]
    return state


def renamed(prefix: str) -> Dict[str, Any]:
    return {prefix + name: tensor for name, tensor in published_weights().items()}


def with_nan() -> Dict[str, Any]:
    return {**published_weights(), "fc3.bias": torch.tensor([0.0, float("nan"), 0.0])}


@pytest.mark.parametrize(
    ("state", "changes", "message"),
    [
        (published_weights, {"classes": ["a", "b"]}, r"fc3.weight has the shape \(3, 84\), but .* expects \(2, 84\)"),
        (published_weights, {"input_size": 64}, r"fc1.weight has the shape \(120, 18496\), but .* \(120, 2704\)"),
        (lambda: without("fc2.bias"), {}, "does not fit fruit_classifier: it lacks fc2.bias"),
        (dict, {}, "does not fit fruit_classifier: it lacks conv1.weight, conv1.bias, conv2.weight and 7 more"),
        (
            lambda: {**without("fc2.bias"), "head.bias": torch.zeros(3)},
            {},
            "it lacks fc2.bias and has head.bias too many",
        ),
        (lambda: renamed("module."), {}, "keys that begin with 'module.', of DataParallel: save them without it"),
        (lambda: [1, 2], {}, "holds a list, but a state dict"),
        (lambda: {"conv1.weight": 1}, {}, "holds a dict, but a state dict"),
        (lambda: {"epoch": 3, "model": published_weights()}, {}, "its entry 'model' is one, save that alone"),
        (with_nan, {}, "answers a grey image with logits that are not finite: .*nan"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_explained(tmp_path: Path, state: Any, changes: Any, message: str) -> None:
    bundle = make_bundle(tmp_path / "bundle", saved(state()), **changes)
    with pytest.raises(BundleError, match=message) as caught:
        load(bundle)
    assert str(caught.value).startswith(str(tmp_path))
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architecture", ["fruit_classifier", "torchscript"])
@pytest.mark.parametrize("weights", [b"", b"garbage", b"PK\x03\x04" + bytes(50), b"\x80\x02}q\x00."])
def test_a_file_that_holds_no_weights_is_refused(weights: bytes, architecture: str) -> None:
    manifest = Manifest(**{**FIELDS, "weights_sha256": "0" * 64, "architecture": architecture})
    for name in ("weights.pt", "weights.safetensors"):
        with pytest.raises(BundleError, match=name):
            load(Bundle(Path("b"), manifest, Path("b") / name, weights))


def test_a_program_under_the_name_of_data_is_refused() -> None:
    manifest = Manifest(**{**FIELDS, "weights_sha256": "0" * 64, "architecture": "torchscript"})
    program = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Identity()), program)
    with pytest.raises(BundleError, match=r"a TorchScript file is a program: name it weights\.pt"):
        load(Bundle(Path("b"), manifest, Path("b") / "weights.safetensors", program.getvalue()))


def test_safetensors_are_the_state_that_they_were_made_of(tmp_path: Path) -> None:
    from model_server.model.loading import load_model, load_state, to_safetensors

    state = {
        **published_weights(),
        "count": torch.tensor(7),
        "half": torch.ones(2, 3, dtype=torch.bfloat16).t(),
        "empty": torch.zeros(0),
    }
    loaded = load_state(make_bundle(tmp_path / "more", to_safetensors(state)), allow_pickle=False)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert all(loaded[name].dtype == tensor.dtype for name, tensor in state.items())
    bundle = make_bundle(tmp_path / "bundle", to_safetensors(published_weights()))
    assert bundle.weights_path.name == "weights.safetensors"
    pixels = torch.rand(1, 3, 150, 150) * 255
    pickled = load(make_bundle(tmp_path / "pickled", saved(published_weights())))
    assert torch.equal(load_model(bundle)(pixels), pickled(pixels))


def test_damaged_safetensors_are_refused(tmp_path: Path) -> None:
    from model_server.model.loading import to_safetensors

    whole = to_safetensors(published_weights())
    for weights in (whole[:-1], whole[:100], whole.replace(b"F32", b"F99", 1)):
        with pytest.raises(BundleError, match=r"weights.safetensors is not a safetensors file that can be read \("):
            load(make_bundle(tmp_path / str(len(weights)) / weights[:40].hex()[-8:], weights))


def mutations(whole: bytes, rng: Random) -> Iterator[bytes]:
    """Yield a file that was cut off, and with bits and fields changed: all over, and where its directories are."""
    for _ in range(10):
        yield whole[: rng.randrange(len(whole))]
        for place in (rng.randrange(len(whole)), rng.randrange(2000), len(whole) - 1 - rng.randrange(2000)):
            changed = bytearray(whole)
            for byte in range(place, min(place + rng.choice((1, 8)), len(whole))):
                changed[byte] = rng.randrange(256)
            yield bytes(changed)


@pytest.mark.parametrize("kind", ["pickled", "safetensors", "torchscript"])
def test_damaged_weights_give_a_sentence_or_a_model(tmp_path: Path, kind: str) -> None:
    from model_server.model.fruit_classifier import FruitClassifier
    from model_server.model.loading import to_safetensors

    fields, network, buffer = {**SMALL}, FruitClassifier(3, 32).eval(), io.BytesIO()
    if kind == "torchscript":
        fields["architecture"] = "torchscript"
        torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, 32, 32)), buffer)
    state = network.state_dict()
    whole = {"pickled": saved(state), "safetensors": to_safetensors(state), "torchscript": buffer.getvalue()}[kind]

    refused = 0
    for weights in mutations(whole, Random(kind)):
        try:
            load(bundle_of(tmp_path, weights, fields))
        except BundleError:
            refused += 1
    assert refused >= 10


def test_torch_that_a_pickle_can_trick_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from model_server.model.loading import load_model

    bundle = make_bundle(tmp_path / "bundle", saved(published_weights()))
    for version in ("1.13.1", "2.5.1+cpu"):
        monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
        with pytest.raises(BundleError, match=r"weights.pt could run code in torch .* MODEL_SERVER_ALLOW_PICKLE=true"):
            load_model(bundle)
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.6.0"))
    load_model(bundle)


@pytest.mark.parametrize(("engine", "file"), [("onnxruntime", "model.onnx"), ("ncnn", "model.ncnn.zip")])
def test_an_engine_that_cannot_run_the_bundle_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, file: str
) -> None:
    from model_server.model.loading import load_model, to_safetensors

    weights = to_safetensors(published_weights())
    with pytest.raises(BundleError, match=rf"has no {file} for the engine {engine}: .* let MODEL_SERVER_ENGINE be"):
        load_model(make_bundle(tmp_path / "plain", weights), engine=engine)
    write_bundle(tmp_path / "exported", weights, {**FIELDS, "engine": engine}, exports={engine: b"exported"})
    exported = read_bundle(tmp_path / "exported")
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(
        BundleError, match=rf"{file} cannot be served: {engine} is not installed; install .*ENGINE=torch"
    ):
        load_model(exported)
    assert load_model(exported, engine="torch")(torch.zeros(1, 3, 150, 150)).shape == (1, 6)


class Malicious:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('executed')",)


def test_code_in_weights_is_not_executed(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a PyTorch state dict"):
        load(make_bundle(tmp_path / "bundle", saved({"conv1.weight": Malicious()})))


def test_a_whole_model_is_not_unpickled(tmp_path: Path) -> None:
    with pytest.raises(
        BundleError, match=r"not a PyTorch state dict \(as torch.save\(model.state_dict\(\), …\) writes"
    ):
        load(make_bundle(tmp_path / "bundle", saved(network())))


def network(*tail: nn.Module, classes: int = 3) -> nn.Module:
    """Return a small network for images of 32×32 pixels, with parts that answer differently in training."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.AvgPool2d(8), nn.Flatten()]
    built = nn.Sequential(*layers, nn.Linear(64, classes), *tail)
    built[1].running_mean.normal_(), built[1].running_var.uniform_(0.5, 2)
    return built


def exported(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(model, buffer)
    return buffer.getvalue()


def scripted(model: nn.Module) -> bytes:
    return exported(torch.jit.script(model))


def traced(model: nn.Module) -> bytes:
    return exported(torch.jit.trace(model, torch.randn(1, 3, 32, 32), check_trace=False))


def frozen(model: nn.Module) -> bytes:
    return exported(torch.jit.freeze(torch.jit.script(model.eval())))


def of_the_future(weights: bytes) -> bytes:
    """Let TorchScript call an operator that this PyTorch does not have."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(weights)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"torch.flatten(", b"torch.brew("))
    return buffer.getvalue()


SCRIPT: Dict[str, Any] = {"architecture": "torchscript", "input_size": 32}


@pytest.mark.parametrize(
    "export",
    [scripted, lambda model: traced(model.eval()), frozen],
    ids=["script", "trace", "freeze"],
)
def test_torchscript_answers_as_the_model_that_it_was_made_of(
    tmp_path: Path, export: Callable[[nn.Module], bytes]
) -> None:
    """Scripted while it was in training mode, it is put into the mode for answers."""
    model = load(make_bundle(tmp_path / "bundle", export(network()), **SCRIPT))
    pixels = torch.randint(0, 256, (1, 3, 32, 32)).float()
    mean, std = (torch.tensor(FIELDS[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        expected = network().eval()((pixels / 255 - mean) / std)
        torch.testing.assert_close(model(pixels), expected, rtol=1e-5, atol=1e-5)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        return x, x


class Named(nn.Module):
    def forward(self, x: Tensor) -> Dict[str, Tensor]:
        return {"logits": x}


class Numbered(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1)


class Infinite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0


@pytest.mark.parametrize(
    ("weights", "changes", "message"),
    [
        (
            lambda: scripted(network(classes=10)),
            {},
            r"answers an image with the shape \(1, 10\), but \(1, 3\) is expected: "
            "a logit for each of the 3 classes of model.yaml",
        ),
        (lambda: scripted(network(nn.Flatten(0))), {}, r"the shape \(3,\), but \(1, 3\) is expected"),
        (lambda: scripted(network(Twice())), {}, "answers an image with a tuple, but a float tensor of logits"),
        (lambda: scripted(network(Named())), {}, "answers an image with a dict, but a float tensor"),
        (lambda: scripted(network(Numbered())), {}, r"answers an image with torch.int64 numbers, but a float tensor"),
        (lambda: scripted(network(Infinite())), {}, "logits that are not finite: .*inf"),
        (
            lambda: scripted(network()),
            {"input_size": 64},
            "torchscript fails with an image of 64×64 pixels, the input_size of model.yaml: .* cannot be multiplied",
        ),
        (lambda: traced(network().train()), {}, r"the same image differently each time; call model.eval\(\) before"),
        (lambda: saved(published_weights()), {}, "is not a TorchScript file"),
        (
            lambda: scripted(network()),
            {"architecture": "fruit_classifier"},
            "let model.yaml say architecture: torchscript",
        ),
        (lambda: scripted(network())[:-500], {}, "is not a TorchScript file"),
        (
            lambda: of_the_future(scripted(network())),
            {},
            "cannot be loaded by torch .*: Unknown builtin op: aten::brew",
        ),
    ],
)
def test_torchscript_that_does_not_answer_is_explained(
    tmp_path: Path, weights: Any, changes: Any, message: str
) -> None:
    bundle = make_bundle(tmp_path / "bundle", weights(), **{**SCRIPT, **changes})
    with pytest.raises(BundleError, match=message) as caught:
        load(bundle)
    assert str(caught.value).startswith(str(tmp_path))
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
