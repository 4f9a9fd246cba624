import base64
import json
import time
from pathlib import Path
from typing import Any, Dict

import pytest

from model_server.app import create_app
from model_server.feedback import PredictionIds
from model_server.metrics.classes import OTHER
from model_server.settings import Settings, SettingsError
from tests.unit.model_server.test_api_keys import KEYS
from tests.unit.model_server.test_app import Client, Encode, FakeClassifier, make_client, post, samples

KEY, OTHER_KEY = "k" * 32, "o" * 32


def keys(directory: Path, *keys: str) -> Path:
    """Write a file of keys."""
    file = directory / f"keys-{len(list(directory.iterdir()))}"
    file.write_text("\n".join([*keys, ""]))
    return file


def count(client: Client, **labels: str) -> float:
    name = "feedback_by_confidence_total" if "bin" in labels else "feedback_total"
    return samples(client).get(name + str(sorted(labels.items())), 0.0)


def rejected(client: Client) -> Dict[str, float]:
    prefix = "rejected_feedback_total[('reason', '"
    return {key[len(prefix) : -3]: value for key, value in samples(client).items() if key.startswith(prefix) and value}


def tell(client: Client, prediction_id: object, label: object) -> Any:
    return client.post("/feedback", json={"id": prediction_id, "label": label})


@pytest.fixture
def client(classifier: FakeClassifier, tmp_path: Path) -> Client:
    return make_client(classifier, feedback_keys_file=keys(tmp_path, KEY))


@pytest.fixture
def classifier() -> FakeClassifier:
    return FakeClassifier()


def test_one_server_takes_feedback_to_the_prediction_of_another(encode: Encode, tmp_path: Path) -> None:
    one, other = (make_client(FakeClassifier(), feedback_keys_file=keys(tmp_path, KEY)) for _ in range(2))
    ids = [post(one, encode()).headers["x-prediction-id"] for _ in range(3)]

    answers = [tell(other, prediction_id, label) for prediction_id, label in zip(ids, ("lemon", "lemon", "apple"))]

    assert [answer.status_code for answer in answers] == [200] * 3
    assert answers[2].json() == {"likely_class": "lemon", "label": "apple", "correct": False}
    assert count(other, version="1.0", label="lemon", **{"class": "lemon"}) == 2
    assert count(other, version="1.0", label="apple", **{"class": "lemon"}) == 1
    assert count(other, version="1.0", bin="0.9", correct="true") == 2
    assert count(other, version="1.0", bin="0.9", correct="false") == 1


def test_an_id_is_used_once(client: Client, encode: Encode) -> None:
    prediction_id = post(client, encode()).headers["x-prediction-id"]

    assert [tell(client, prediction_id, "apple").status_code for _ in range(2)] == [200, 409]
    assert count(client, version="1.0", label="apple", **{"class": "lemon"}) == 1
    assert rejected(client) == {"replayed": 1}


def test_feedback_that_was_refused_can_be_corrected(client: Client, encode: Encode) -> None:
    prediction_id = post(client, encode()).headers["x-prediction-id"]
    refused = tell(client, prediction_id, "tomato")

    assert (refused.status_code, refused.json()) == (422, {"detail": "'tomato' is no class of the model."})
    assert rejected(client) == {"unknown_label": 1}
    assert tell(client, prediction_id, "apple").status_code == 200


def test_a_changed_id_is_refused(client: Client, encode: Encode) -> None:
    prediction_id = post(client, encode()).headers["x-prediction-id"]
    content = bytearray(base64.urlsafe_b64decode(prediction_id + "=="))
    for place in range(len(content)):
        content[place] ^= 1
        changed = base64.urlsafe_b64encode(content).rstrip(b"=").decode()
        assert tell(client, changed, "apple").status_code in {400, 403}, place
        content[place] ^= 1
    assert tell(client, prediction_id, "apple").status_code == 200


def test_ids_of_a_replaced_key_are_taken_until_it_is_gone(encode: Encode, tmp_path: Path) -> None:
    only_old, both, only_new = (
        make_client(FakeClassifier(), feedback_keys_file=keys(tmp_path, *some))
        for some in ((KEY,), (OTHER_KEY, KEY), (OTHER_KEY,))
    )
    old, new = (post(server, encode()).headers["x-prediction-id"] for server in (only_old, both))

    assert tell(both, old, "apple").status_code == 200
    assert tell(only_new, old, "apple").status_code == 403
    assert tell(only_new, new, "apple").status_code == 200
    assert rejected(only_new) == {"forged": 1}


def test_an_old_prediction_is_refused(client: Client, encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    prediction_id = post(client, encode()).headers["x-prediction-id"]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 91 * 24 * 3600)

    assert tell(client, prediction_id, "apple").status_code == 410
    assert rejected(client) == {"expired": 1}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[" * 4000,
        b"\xff",
        b'{"id": 1, "label": "apple"}',
        b'{"id": "AAAA", "label": "apple"}',
        b'{"id": "\xc3\xa9", "label": "apple"}',
        b'{"id": "' + b"A" * 3000 + b'", "label": null}',
    ],
    ids=repr,
)
def test_what_is_malformed_is_the_fault_of_the_client(client: Client, body: bytes) -> None:
    answer = client.post("/feedback", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert rejected(client) == {"malformed": 1}


def test_a_large_body_is_refused(client: Client) -> None:
    assert client.post("/feedback", content=bytes(4097)).status_code == 413


def test_labels_that_a_later_model_lacks_are_taken_where_they_are_right(client: Client, tmp_path: Path) -> None:
    """The id names the class of the model that predicted."""
    prediction_id = PredictionIds(keys(tmp_path, KEY)).issue("0.9", "quince", 3)

    assert tell(client, prediction_id, "quince").json()["correct"] is True
    assert count(client, version="0.9", label="quince", **{"class": "quince"}) == 1


def test_the_first_feedback_is_an_increase(client: Client) -> None:
    """Prometheus sees no increase in a series that begins with 1."""
    zeros = [key for key, value in samples(client).items() if key.startswith("feedback_") and "_total" in key]
    assert len(zeros) == 3 * 3 + 11 * 2


def test_pairs_of_classes_are_bounded(client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("model_server.metrics.feedback.MAX_PAIRS", 3 * 3 + 2)
    ids = PredictionIds(keys(tmp_path, KEY))
    for predicted in ("a", "b", "c", "d", "a"):
        assert tell(client, ids.issue("1", predicted, 3), predicted).status_code == 200

    assert count(client, version="1", label="a", **{"class": "a"}) == 2
    assert count(client, version="1", label=OTHER, **{"class": OTHER}) == 2
    assert count(client, version="1", bin="0.5", correct="true") == 5


def test_without_a_key_there_are_no_ids(classifier: FakeClassifier, encode: Encode) -> None:
    client = make_client(classifier)
    assert "x-prediction-id" not in post(client, encode()).headers
    assert tell(client, "AAAA", "apple").status_code == 404
    assert not [key for key in samples(client) if key.startswith(("feedback", "rejected_feedback"))]


def test_a_key_of_the_server_is_needed_where_it_has_keys(classifier: FakeClassifier, tmp_path: Path) -> None:
    file = keys(tmp_path, KEY)
    client = make_client(classifier, feedback_keys_file=file, api_keys=KEYS)
    prediction_id = PredictionIds(file).issue("1.0", "lemon", 3)
    body = json.dumps({"id": prediction_id, "label": "apple"}).encode()

    assert client.post("/feedback", content=body).status_code == 401
    assert client.post("/feedback", content=body, headers={"X-API-Key": "shop.new"}).status_code == 200


def test_keys_that_cannot_be_used_are_explained_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"Key 2 in .* has less than 32 characters") as error:
        create_app(Settings(bundle=Path("none"), feedback_keys_file=keys(tmp_path, KEY, "secret")), FakeClassifier())
    assert "secret" not in str(error.value)
    with pytest.raises(SettingsError, match="none, the file of MODEL_SERVER_FEEDBACK_KEYS_FILE, cannot be read"):
        create_app(Settings(bundle=Path("none"), feedback_keys_file=tmp_path / "none"), FakeClassifier())


def test_the_documentation_shows_what_is_told(client: Client) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/feedback"]["post"]
    assert set(operation["requestBody"]["content"]["application/json"]["schema"]["properties"]) == {"id", "label"}
    assert set(operation["responses"]) == {"200", "400", "401", "403", "408", "409", "410", "413", "415", "422"}
