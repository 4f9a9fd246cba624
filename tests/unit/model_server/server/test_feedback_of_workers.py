from pathlib import Path

from model_server.feedback import PredictionIds
from tests.unit.model_server.server.gunicorn_process import Server


def test_feedback_to_an_earlier_model_is_on_the_page_of_every_worker(tmp_path: Path) -> None:
    """One worker counts it, and another one, which has no such series, may be asked for the page."""
    keys = tmp_path / "keys"
    keys.write_text("k" * 32)
    (tmp_path / "metrics").mkdir()
    server = Server(tmp_path / "metrics", tmp_path / "log", MODEL_SERVER_FEEDBACK_KEYS_FILE=str(keys))
    try:
        body = {"id": PredictionIds(keys).issue("0.9", "quince", 3), "label": "quince"}
        again = [server.client.post("/feedback", json=body).status_code for _ in range(10)]
        series = "feedback_total[('class', 'quince'), ('label', 'quince'), ('version', '0.9')]"
        counted = {server.samples().get(series) for _ in range(20)}
    finally:
        server.process.terminate()
        assert server.process.wait(20) == 0
        server.client.close()

    # Workers share the memory of ids that have been used.
    assert sorted(again) == [200] + [409] * 9
    assert counted == {1.0}
