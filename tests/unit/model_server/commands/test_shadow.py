import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest

from model_server.commands.shadow import Judge
from model_server.model.bundle import read_bundle, write_bundle
from model_server.settings import Settings
from tests.unit.model_server.bundle_fields import SMALL

CLASSES = ["apple", "grapes", "lemon"]


@pytest.fixture(scope="module")
def weights() -> bytes:
    torch = pytest.importorskip("torch")
    from model_server.model.fruit_classifier import FruitClassifier
    from model_server.model.loading import to_safetensors

    torch.manual_seed(0)
    return to_safetensors(FruitClassifier(3, 32).state_dict())


@pytest.fixture
def images() -> List[bytes]:
    return [path.read_bytes() for path in sorted((Path(__file__).parents[4] / "load_test" / "images").glob("*480.jpg"))]


def compare(directory: Path, weights: bytes, images: List[bytes], **fields: Any) -> Dict[str, float]:
    """Let a bundle judge what another one with the same weights says; return the samples of its metrics."""
    from model_server.model.classifier import Classifier
    from model_server.model.preprocessing import decode

    write_bundle(directory / "serves", weights, SMALL)
    write_bundle(directory / "next", weights, {**SMALL, **fields})
    serving, judge = (Classifier(read_bundle(directory / name)) for name in ("serves", "next"))
    judged = Judge(judge, Settings(bundle=directory))
    for image in images:
        likely_class, *_ = serving.classify(serving.preprocess(decode(image, 1_000_000)))
        judged(image, likely_class)
    return {
        sample.name + str(sorted(sample.labels.values())): sample.value
        for family in judged.metrics.registry.collect()
        for sample in family.samples
    }


def test_equal_bundle_agrees(tmp_path: Path, weights: bytes, images: List[bytes]) -> None:
    samples = compare(tmp_path, weights, images)

    assert samples["shadow_agreement_ratio[]"] == 1
    assert samples["shadow_failures_total[]"] == 0
    assert samples["shadow_stage_cpu_seconds_count['forward']"] == len(images) > 1


def test_shuffled_classes_do_not_agree(tmp_path: Path, weights: bytes, images: List[bytes]) -> None:
    samples = compare(tmp_path, weights, images, classes=[*CLASSES[1:], CLASSES[0]])

    assert samples["shadow_agreement_ratio[]"] == 0
    different = [value for name, value in samples.items() if "predictions_total" in name and "'false'" in name]
    assert (len(different), sum(different)) == (len(CLASSES), len(images))


def test_image_that_cannot_be_decoded_is_a_failure(tmp_path: Path, weights: bytes, images: List[bytes]) -> None:
    from model_server.model.classifier import Classifier

    write_bundle(tmp_path / "next", weights, SMALL)
    judge = Judge(Classifier(read_bundle(tmp_path / "next")), Settings(bundle=tmp_path))
    judge(images[0][:500], "apple")
    judge(images[0], "none")

    assert judge.metrics.registry.get_sample_value("shadow_failures_total") == 1
    assert judge.metrics.registry.get_sample_value("shadow_agreement_ratio") == 0


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        (["--share", "0"], {}, "argument --share: 0 is no percentage above 0 to 100"),
        (["--share", "many"], {}, "argument --share: many is no percentage above 0 to 100"),
        (["--share", "10"], {}, "MODEL_SERVER_RUNTIME_DIR is not set; it names the directory of the service."),
        (["--share", "10"], {"MODEL_SERVER_RUNTIME_DIR": "."}, "PROMETHEUS_MULTIPROC_DIR is not set; it names"),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path, arguments: List[str], variables: Dict[str, str], sentence: str
) -> None:
    command = [sys.executable, "-m", "model_server", "shadow", "--bundle", "next", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4]), "MODEL_SERVER_BUNDLE": "x", **variables}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert sentence in done.stderr.splitlines()[-1]
