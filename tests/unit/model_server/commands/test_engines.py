"""script/test runs these beside torchvision's: they create bundles of its networks."""

import importlib.util
import sys
import time
import warnings
from pathlib import Path
from typing import Any, List

import pytest
import yaml

from model_server.commands import engines
from model_server.commands.cli import main
from model_server.model.bundle import BundleError, read_bundle

for needed in ("torch", "torchvision"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed", allow_module_level=True)

import torch  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its decoders may lack their libraries
    from torchvision.models import get_model

from model_server.model import loading  # noqa: E402
from model_server.model.classifier import Classifier  # noqa: E402
from model_server.model.reference import PROJECTIONS  # noqa: E402


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path: Path = tmp_path_factory.mktemp("weights") / "trained.pt"
    torch.save(get_model("squeezenet1_1", weights=None, num_classes=3).state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def _is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVER_ALLOW_PICKLE", "true")  # torch may be older than 2.6


def create(weights: Path, directory: Path, *options: str, architecture: str = "squeezenet1_1") -> Any:
    arguments = ["bundle", "create", str(directory), "--weights", str(weights), "--name", "fruits", "--version", "1.0"]
    main([*arguments, "--architecture", architecture, "--input-size", "64", "--classes", *"abc", *options])
    return yaml.safe_load((directory / "model.yaml").read_text())


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(SystemExit) as caught:
        create(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def logits(directory: Path, engine: str = "") -> Any:
    classifier = Classifier(read_bundle(directory), True, engine)
    torch.manual_seed(1)
    return classifier.logits(torch.randint(0, 256, (1, 3, 64, 64)).float())


def with_engines() -> None:
    for package in ("onnx", "onnxruntime", "pnnx", "ncnn"):
        pytest.importorskip(package)


FILES = {"onnxruntime": "model.onnx", "ncnn": "model.ncnn.zip"}


@pytest.mark.parametrize(("times", "size"), [({1: 1.0, 4: 0.85}, 4), ({1: 1.0, 4: 0.95}, 1)], ids=["gain", "none"])
def test_batches_are_chosen_where_they_are_a_tenth_faster(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: Any, size: int
) -> None:
    now, batches = [0.0], Classifier.logits_of_batch

    def spend(self: Classifier, images: List[Any]) -> Any:
        now[0] += times.get(len(images), 0) * len(images)
        return batches(self, images)

    monkeypatch.setattr(Classifier, "logits_of_batch", spend)
    monkeypatch.setattr(time, "process_time", lambda: now[0])
    written = create(weights, tmp_path / "bundle", "--engine", "torch")
    assert (written["engine"], written["batch_size"]) == ("torch", size)
    assert Classifier(read_bundle(tmp_path / "bundle")).batch_size == size
    assert not any((tmp_path / "bundle" / file).exists() for file in FILES.values())


def test_batches_that_give_other_logits_are_not_chosen(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Classifier.logits_of_batch
    monkeypatch.setattr(
        Classifier, "logits_of_batch", lambda self, images: batches(self, images) * (1 if len(images) < 3 else 1.001)
    )
    monkeypatch.setattr(engines, "WORTH_IT", 1000)
    assert create(weights, tmp_path / "bundle", "--engine", "torch")["batch_size"] == 1


def test_the_engine_of_servers_does_not_decide_what_is_proved(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_engines()
    for engine, other in (("ncnn", "onnxruntime"), ("onnxruntime", "torch")):
        monkeypatch.setenv("MODEL_SERVER_ENGINE", other)
        assert create(weights, tmp_path / engine, "--engine", engine)["engine"] == engine
        assert f"engine:       {engine}\n" in capsys.readouterr().out.replace(", in batches of up to 4", "")


@pytest.mark.parametrize("engine", FILES)
def test_a_bundle_for_another_engine_gives_the_same_logits(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    with_engines()
    bundle = tmp_path / "bundle"
    assert create(weights, bundle, "--engine", engine)["engine"] == engine
    assert f"engine:       {engine}" in capsys.readouterr().out
    torch.testing.assert_close(logits(bundle), logits(bundle, "torch"), rtol=1e-4, atol=1e-5)

    main(["bundle", "pack", str(bundle), str(tmp_path / "bundle.tar.gz")])
    said = capsys.readouterr().out
    assert f"holds {FILES[engine]}, model.yaml, weights.safetensors" in said
    assert "model_server_torchvision" not in said
    monkeypatch.setenv("MODEL_SERVER_ENGINE", "torch")
    main(["bundle", "check", str(bundle)])
    assert "engine:       torch\n" in capsys.readouterr().out


@pytest.fixture(scope="module", params=FILES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle for another engine of a network with projections."""
    with_engines()
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("exported")
    torch.save(get_model("mobilenet_v3_small", weights=None, num_classes=3).state_dict(), directory / "trained.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL_SERVER_ALLOW_PICKLE", "true")
        create(
            directory / "trained.pt",
            directory / "bundle",
            "--engine",
            request.param,
            architecture="mobilenet_v3_small",
        )
    return directory / "bundle"


@pytest.mark.parametrize("count", [1, 3])
def test_engines_have_the_same_projections(exported: Path, count: int) -> None:
    manifest = read_bundle(exported).manifest
    if manifest.engine == "ncnn" and count > 1:
        pytest.skip("ncnn takes one image")
    torch.manual_seed(count)
    images = list((torch.rand(count, 3, 64, 64) * 255).split(1))
    theirs, ours = (
        [answer.projections for answer in Classifier(read_bundle(exported), True, engine).classify_batch(images)]
        for engine in ("torch", manifest.engine)
    )
    assert [each.shape for each in ours] == [(len(PROJECTIONS),)] * count
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_export_of_an_earlier_release_has_no_projections(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = read_bundle(exported)
    with monkeypatch.context() as patch:
        patch.setattr(loading, "add_projections", lambda *_: 0)
        engine = bundle.manifest.engine
        earlier = bundle._replace(exports={engine: loading.export_model(bundle, engine, allow_pickle=True)})
    (answer,) = Classifier(earlier).classify_batch([torch.zeros(1, 3, 64, 64)])
    assert (answer.logits.shape, answer.projections.shape) == ((3,), (0,))


@pytest.mark.parametrize("classes", ["abcdef", "ab"])
def test_projections_are_not_taken_for_classes(exported: Path, classes: str) -> None:
    bundle = read_bundle(exported)
    other = bundle._replace(manifest=bundle.manifest.model_copy(update={"classes": tuple(classes)}))
    with pytest.raises(
        BundleError, match=rf"\(1, 6\), but \(1, {len(classes) + 3}\) is expected: .*, and 3 projections"
    ):
        loading.load_model(other)


@pytest.mark.parametrize(
    ("others", "chosen"),
    [((0.5, 0.9), "onnxruntime"), ((0.95, 0.95), "torch"), ((0.5, 0.4), "ncnn"), ((0.5, 0.48), "onnxruntime")],
)
def test_the_fastest_engine_is_the_default(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: Any, chosen: str
) -> None:
    with_engines()
    seconds = {"torch": 1.0, **dict(zip(FILES, others))}
    figures = {engine: engines._Figures(each, each, 1) for engine, each in seconds.items()}
    monkeypatch.setattr(engines, "_measure", lambda classifier, *_: figures[classifier.engine])
    assert create(weights, tmp_path / "bundle")["engine"] == chosen
    written = {engine for engine, file in FILES.items() if (tmp_path / "bundle" / file).exists()}
    assert written == {chosen} - {"torch"}


def test_an_engine_that_is_slower_than_batches_is_not_chosen(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_engines()
    figures = {
        engine: engines._Figures(single, batched, 1)
        for engine, single, batched in (("torch", 1.0, 1.0), ("onnxruntime", 0.8, 0.5), ("ncnn", 0.6, 0.6))
    }
    monkeypatch.setattr(engines, "_measure", lambda classifier, *_: figures[classifier.engine])
    assert create(weights, tmp_path / "bundle")["engine"] == "onnxruntime"


def test_an_engine_that_gives_other_logits_is_not_chosen(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_engines()
    monkeypatch.setattr(engines, "WORTH_IT", 1000)
    monkeypatch.setattr(engines, "TOLERANCE", -1.0)  # what no engine can meet
    assert create(weights, tmp_path / "bundle")["engine"] == "torch"
    said = capsys.readouterr().out
    for engine in FILES:
        assert f"not chosen:   {engine}: The engine {engine} gives other logits than torch: they differ by " in said
        sentence = refused(weights, tmp_path / "other", "--engine", engine)
        assert sentence.startswith(f"bundle: The engine {engine} gives other logits than torch: ")


def test_without_other_engines_torch_is_chosen(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("onnx", "onnxruntime", "ncnn", "pnnx"):
        monkeypatch.setitem(sys.modules, module, None)
    assert create(weights, tmp_path / "bundle")["engine"] == "torch"
    said = capsys.readouterr().out
    for engine, reason in (("onnxruntime", "torch "), ("ncnn", "pnnx is not installed")):
        sentence = f"squeezenet1_1 cannot be served by {engine}: {reason}"
        assert f"not chosen:   {engine}: {sentence}" in said
        assert refused(weights, tmp_path / "other", "--engine", engine).startswith(f"bundle: {sentence}")


def test_other_architectures_are_served_by_torch_alone(tmp_path: Path) -> None:
    from model_server.model.fruit_classifier import FruitClassifier

    torch.save(FruitClassifier(3, 64).state_dict(), tmp_path / "weights.pt")
    sentence = refused(
        tmp_path / "weights.pt", tmp_path / "bundle", "--engine", "onnxruntime", architecture="fruit_classifier"
    )
    assert sentence.startswith("bundle: fruit_classifier is served by torch alone: --engine onnxruntime is for ")
