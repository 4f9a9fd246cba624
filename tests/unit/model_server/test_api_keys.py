import hashlib
from pathlib import Path
from typing import Any, Dict

import pytest

from model_server.api_keys import ApiKeys, Caller
from model_server.app import create_app
from model_server.server.self_check import check
from model_server.settings import Settings, SettingsError
from tests.unit.model_server.test_app import Client, Encode, FakeClassifier, make_client, samples


def entry(name: str, secret: str) -> str:
    return f"{name}:{hashlib.sha256(secret.encode()).hexdigest()}"


KEYS = ",".join([entry("shop", "old"), entry("shop", "new"), entry("lab", "other")])


@pytest.mark.parametrize(
    ("headers", "caller"),
    [
        ({"x-api-key": "shop.old"}, Caller("shop", True)),
        ({"x-api-key": "shop.new"}, Caller("shop", True)),
        ({"authorization": "Bearer lab.other"}, Caller("lab", True)),
        ({"authorization": "bearer  lab.other"}, Caller("lab", True)),
        ({"x-api-key": "lab.old"}, Caller("lab", False)),
        ({"x-api-key": "shop."}, Caller("shop", False)),
        ({"x-api-key": "shop"}, Caller("shop", False)),
        ({"x-api-key": "old"}, Caller("unknown", False)),
        ({"x-api-key": "nobody.old"}, Caller("unknown", False)),
        ({"x-api-key": "shöp.\xff"}, Caller("unknown", False)),
        ({"authorization": "Basic lab.other"}, Caller("unknown", False)),
        ({}, Caller("unknown", False)),
    ],
)
def test_a_caller_is_known_by_name_and_secret(headers: Dict[str, str], caller: Caller) -> None:
    assert ApiKeys(KEYS).judge(headers) == caller


@pytest.mark.parametrize("setting", ["shop:secret", "shop", f"{KEYS},a b:{'0' * 64}", f"shop:{'A' * 64}"])
def test_a_malformed_key_is_told_without_repeating_it(setting: str) -> None:
    with pytest.raises(SettingsError, match=r"Entry [14] of MODEL_SERVER_API_KEYS is not NAME:SHA256") as caught:
        ApiKeys(setting)
    assert "secret" not in str(caught.value)


@pytest.fixture
def client(classifier: FakeClassifier) -> Client:
    return make_client(classifier, api_keys=KEYS)


@pytest.fixture
def classifier() -> FakeClassifier:
    return FakeClassifier()


def predict(client: Client, data: bytes, **headers: str) -> Any:
    sent = {"content-type": "image/jpeg", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return client.post("/predict", content=data, headers=sent)


def test_without_keys_none_is_needed(classifier: FakeClassifier, encode: Encode) -> None:
    assert predict(make_client(classifier), encode()).status_code == 200
    assert not any(name.startswith("api_key") for name in samples(make_client(classifier)))


def test_only_requests_with_a_key_are_predicted(client: Client, classifier: FakeClassifier, encode: Encode) -> None:
    assert predict(client, encode(), x_api_key="shop.new").status_code == 200
    refused = predict(client, encode(), x_api_key="shop.wrong")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert "X-API-Key: NAME.SECRET" in refused.json()["detail"]
    assert predict(client, encode()).status_code == 401
    assert len(classifier.seen) == 1
    assert [client.get(path).status_code for path in ("/", "/healthz", "/readyz", "/metrics")] == [200] * 4


def test_answers_are_counted_by_the_name_of_the_key(client: Client, encode: Encode) -> None:
    for key in ("shop.old", "shop.new", "shop.wrong", "nobody.old"):
        predict(client, encode(), x_api_key=key)
    found = {name: value for name, value in samples(client).items() if name.startswith("api_key_requests_total")}
    assert found == {
        "api_key_requests_total" + str(sorted({"key": key, "accepted": accepted}.items())): value
        for key, accepted, value in (
            ("shop", "true", 2),
            ("shop", "false", 1),
            ("lab", "true", 0),
            ("lab", "false", 0),
            ("unknown", "false", 1),
        )
    }
    assert samples(client)["rejected_inputs_total[('reason', 'unauthorized')]"] == 2


def test_a_body_is_not_read_without_a_key(client: Client) -> None:
    async def body() -> Any:
        raise AssertionError("the body was read")
        yield b""

    answer = client.post("/predict", content=body(), headers={"content-type": "image/jpeg"})
    assert answer.status_code == 401


def test_the_self_check_needs_no_key(classifier: FakeClassifier) -> None:
    check(create_app(Settings(bundle=Path("none"), api_keys=KEYS), classifier))


def test_the_documentation_asks_for_the_key(client: Client, classifier: FakeClassifier) -> None:
    document = client.get("/openapi.json").json()
    assert document["paths"]["/predict"]["post"]["security"]
    (scheme,) = document["components"]["securitySchemes"].values()
    assert (scheme["in"], scheme["name"]) == ("header", "X-API-Key")
    assert "security" not in make_client(classifier).get("/openapi.json").json()["paths"]["/predict"]["post"]
