from pathlib import Path
from random import Random
from typing import Any

import pytest

from model_server.commands.drawings import draw_fruit
from model_server.model.reference import PROJECTIONS

torch = pytest.importorskip("torch")

from tests.unit.model_server.model.test_classifier import load, make_bundle  # noqa: E402
from tests.unit.model_server.model.torchvision_reference.make import published_weights  # noqa: E402


def widened(network: Any, classes: int) -> Any:
    from model_server.model.projections import add_projections

    add_projections(network, classes)
    return network.eval()


def test_the_projections_are_signed_sums_of_the_layer_before_the_last_and_the_logits_stay() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    x = torch.randn(4, 5)
    before, features = network(x), network[:2](x)
    outputs = widened(network, 3)(x)
    assert outputs.shape == (4, 3 + len(PROJECTIONS))
    torch.testing.assert_close(outputs[:, :3], before)
    signs = network[2].weight[3:] * 8**0.5
    assert set(signs.flatten().round(decimals=5).tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(outputs[:, 3:], features @ signs.T / 8**0.5)


def test_their_signs_are_the_same_everywhere() -> None:
    """What a reference says of them must hold for the next release and machine."""
    network = widened(torch.nn.Sequential(torch.nn.Linear(8, 3, bias=False)), 3)
    assert [[int(x > 0) for x in row] for row in network[0].weight[3:].tolist()] == SIGNS


SIGNS = [[1, 1, 0, 1, 0, 0, 1, 0], [0, 1, 1, 1, 0, 0, 0, 1], [1, 0, 1, 0, 1, 1, 0, 0]]


@pytest.mark.parametrize(
    "network",
    [
        torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()),
        torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(12, 4), torch.nn.Unflatten(1, (2, 2)), torch.nn.Flatten()
        ),
    ],
)
def test_a_network_without_a_linear_last_layer_stays_as_it_is(network: Any) -> None:
    x = torch.rand(1, 3, 2, 2)
    before = network(x)
    torch.testing.assert_close(widened(network, 3)(x), before, rtol=0, atol=0)


def test_the_models_answer_has_them(tmp_path: Path) -> None:
    classifier = load(make_bundle(tmp_path / "bundle", published_weights()))
    images = [classifier.preprocess(draw_fruit(name, Random(name), 300, 200)) for name in ("apple", "lemon")]
    answers = classifier.classify_batch(images)
    assert [tuple(answer.projections.shape) for answer in answers] == [(len(PROJECTIONS),)] * 2
    assert [tuple(answer.logits.shape) for answer in answers] == [(3,)] * 2
    assert not torch.allclose(answers[0].projections, answers[1].projections)
