"""The load test's tasks with a stand-in for Locust: importing Locust would patch this whole process."""

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Callable, Dict, List, Optional

import pytest

LOAD_TEST = Path(__file__).parents[3] / "load_test"


class Answer:
    """A response of Locust with catch_response=True; records its verdict."""

    def __init__(self, status_code: int) -> None:
        self.status_code = status_code
        self.text = "what the server said"
        self.judgement: Optional[str] = None

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def success(self) -> None:
        self.judgement = "success"

    def failure(self, reason: str) -> None:
        self.judgement = reason


class Client:
    """Answers every request with one status."""

    def __init__(self, status: int) -> None:
        self.answer = Answer(status)
        self.requests: List[Dict[str, Any]] = []

    def request(self, method: str, path: str, **options: Any) -> Answer:
        assert options.pop("catch_response"), "an expected error would count as a failure"
        self.requests.append({"method": method, "path": path, **options})
        return self.answer


def _task(weight: int) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        function.weight = weight
        return function

    return decorate


@pytest.fixture
def locustfile(monkeypatch: pytest.MonkeyPatch) -> Any:
    locust = ModuleType("locust")
    listener = SimpleNamespace(add_listener=lambda function: function)
    vars(locust).update(
        HttpUser=object,
        LoadTestShape=object,
        between=lambda shortest, longest: (shortest, longest),
        task=_task,
        events=SimpleNamespace(
            **dict.fromkeys(("init", "init_command_line_parser", "test_start", "quitting"), listener)
        ),
    )
    statistics = ModuleType("locust.stats")
    vars(statistics).update(CSV_STATS_INTERVAL_SEC=0.01, calculate_response_time_percentile=None)
    runners = ModuleType("locust.runners")
    vars(runners).update(WorkerRunner=type("WorkerRunner", (), {}))
    monkeypatch.setitem(sys.modules, "locust", locust)
    monkeypatch.setitem(sys.modules, "locust.stats", statistics)
    monkeypatch.setitem(sys.modules, "locust.runners", runners)
    spec = importlib.util.spec_from_file_location("locustfile_under_test", LOAD_TEST / "locustfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.IMAGES[:] = module.read_images(LOAD_TEST / "images")
    return module


def perform(locustfile: Any, task: str, status: int) -> Client:
    """Let a user do one task against a server that answers with the given status."""
    user = locustfile.ModelServerUser()
    user.client = Client(status)
    getattr(user, task)()
    client: Client = user.client
    return client


def test_user_waits_and_chooses_like_the_original_labs(locustfile: Any) -> None:
    user = locustfile.ModelServerUser
    tasks = {name: value.weight for name, value in vars(user).items() if hasattr(value, "weight")}

    assert user.wait_time == (0.5, 3)
    assert tasks == {"index": 1, "predict": 10, "client_error": 1, "server_error": 1}


@pytest.mark.parametrize(
    ("task", "content_type"),
    [
        ("predict", "image/jpeg"),
        ("client_error", "fake_client_error/jpeg"),
        ("server_error", "fake_server_error/jpeg"),
    ],
)
def test_upload_is_a_sample_image_with_its_content_type(locustfile: Any, task: str, content_type: str) -> None:
    (request,) = perform(locustfile, task, 200).requests
    filename, content, sent_type = request["files"]["file"]

    assert (request["method"], request["path"], sent_type) == ("POST", "/predict", content_type)
    assert content == (LOAD_TEST / "images" / filename).read_bytes()


@pytest.mark.parametrize(
    ("task", "status"),
    [("index", 200), ("predict", 200), ("client_error", 400), ("server_error", 500), ("server_error", 400)],
)
def test_expected_answer_is_a_success(locustfile: Any, task: str, status: int) -> None:
    assert perform(locustfile, task, status).answer.judgement == "success"


@pytest.mark.parametrize(
    ("task", "status"),
    [
        ("index", 404),
        ("predict", 400),
        ("predict", 503),
        ("client_error", 200),
        ("client_error", 500),
        ("server_error", 200),
    ],
)
def test_any_other_answer_is_a_failure_that_says_why(locustfile: Any, task: str, status: int) -> None:
    judgement = perform(locustfile, task, status).answer.judgement

    assert judgement is not None
    assert f"answered {status} instead of" in judgement
    assert "what the server said" in judgement


def test_lost_connection_is_counted_by_locust(locustfile: Any) -> None:
    assert perform(locustfile, "predict", 0).answer.judgement is None


def test_each_task_has_its_own_line_in_the_statistics(locustfile: Any) -> None:
    tasks = ("index", "predict", "client_error", "server_error")
    names = {perform(locustfile, task, 200).requests[0]["name"] for task in tasks}

    assert len(names) == len(tasks)


def test_directory_without_images_is_refused(locustfile: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--images"):
        locustfile.read_images(tmp_path)
    with pytest.raises(SystemExit, match=r"^locust: There is no JPEG in "):
        locustfile._load_images(SimpleNamespace(parsed_options=SimpleNamespace(images=str(tmp_path))))


def test_endings_in_any_case_are_images(locustfile: Any, tmp_path: Path) -> None:
    for name in ("UPPER.JPG", "b.jpeg", "c.txt"):
        (tmp_path / name).write_bytes(name.encode())

    assert locustfile.read_images(tmp_path) == [("UPPER.JPG", b"UPPER.JPG"), ("b.jpeg", b"b.jpeg")]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("steady", [200] * 5),
        ("step", [40, 80, 120, 160, 200]),
        ("spike", [40, 40, 200, 40, 40]),
    ],
)
def test_arrivals_follow_the_shape(locustfile: Any, shape: str, expected: List[int]) -> None:
    steps = locustfile.steps_of(shape, 100, find_limit=False)
    moments = [
        moment
        for sender in range(100)
        for moment in itertools.takewhile(lambda at: at < 100, locustfile.arrivals(0.1, steps, (sender + 0.5) / 100))
    ]

    arrived = [sum(1 for moment in moments if 20 * fifth <= moment < 20 * fifth + 20) for fifth in range(5)]
    assert [round(count / 2) * 2 for count in arrived] == pytest.approx(expected, abs=2)
    assert [locustfile.share_at(steps, 20 * fifth + 10) * 200 for fifth in range(5)] == expected


def test_shape_without_a_run_time_is_refused(locustfile: Any) -> None:
    with pytest.raises(ValueError, match="--shape spike needs a --run-time"):
        locustfile.steps_of("spike", None, find_limit=False)


def test_sample_images_are_of_several_sizes_and_light_enough_for_a_repository() -> None:
    sizes = [path.stat().st_size for path in (LOAD_TEST / "images").glob("*.jpg")]

    assert len(sizes) >= 10
    assert sum(sizes) < 3_000_000
    assert max(sizes) > 10 * min(sizes)


def test_configuration_is_the_original_labs_here_and_on_the_load_host() -> None:
    here = _settings(LOAD_TEST / "locust.conf")
    there = _settings(LOAD_TEST.parent / "roles/locust/templates/etc/locust/locust.conf.j2")

    # There alone is a front door, whose own certificate nobody trusts, and a node exporter.
    assert here.keys() == there.keys() - {"insecure", "metrics-directory"}
    assert {name: here[name] for name in ("headless", "users", "spawn-rate", "run-time")} == {
        "headless": "true",
        "users": "100",
        "spawn-rate": "2",
        "run-time": "5m",
    }


def _settings(path: Path) -> Dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if " = " in line]
    return dict(line.split(" = ", 1) for line in lines)
