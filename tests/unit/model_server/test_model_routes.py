import pytest

from tests.unit.model_server.test_api_keys import KEYS
from tests.unit.model_server.test_app import MANIFEST, Client, FakeClassifier, make_client, requests_total


@pytest.fixture
def client() -> Client:
    return make_client(FakeClassifier())


def test_the_model_is_described(client: Client) -> None:
    assert client.get("/model").json() == {
        "name": "lemon",
        "version": "1.0",
        "digest": "0" * 64,
        "architecture": "none",
        "input": {"size": 16, "resize": 16, "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1]},
        "classes": ["apple", "grapes", "lemon"],
    }


def test_the_open_inference_protocol_finds_what_it_asks_for(client: Client) -> None:
    assert client.get("/v2/health/live").json()["live"] is True
    assert client.get("/v2/health/ready").json()["ready"] is True
    model = client.get(f"/v2/models/{MANIFEST.name}").json()
    assert (model["name"], model["versions"]) == ("lemon", ["1.0"])
    assert {tensor["datatype"] for tensor in (*model["inputs"], *model["outputs"])} == {"BYTES"}
    assert client.get("/v2/models/another").status_code == 404


def test_health_of_both_names_is_one_page(client: Client) -> None:
    """The rules leave these pages out by their names."""
    before = [requests_total(client, "GET", path, 200) for path in ("/healthz", "/readyz")]
    client.get("/v2/health/live")
    client.get("/v2/health/ready")
    after = [requests_total(client, "GET", path, 200) for path in ("/healthz", "/readyz")]
    assert [late - early for late, early in zip(after, before)] == [1, 1]


def test_not_ready_until_the_model_is() -> None:
    classifier = FakeClassifier()
    classifier.ready = False
    assert make_client(classifier).get("/v2/health/ready").status_code == 503


@pytest.mark.parametrize("path", ["/model", "/v2/models/lemon"])
def test_classes_are_for_those_who_may_predict(path: str) -> None:
    client = make_client(FakeClassifier(), api_keys=KEYS)
    assert client.get(path).status_code == 401
    assert client.request("GET", path, headers={"X-API-Key": "shop.new"}).status_code == 200
