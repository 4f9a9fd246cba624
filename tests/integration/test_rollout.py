"""Deployments and rollbacks while the lab's users are served: nobody notices, and one that fails changes nothing.

The tests build on each other. What was deployed before them is deployed after them.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import statistics
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.dashboards.questions import questions
from tests.integration.conftest import Tell
from tests.integration.machines import MODEL_SERVER_PORT, Machine, Prometheus, docker, wait_until
from tests.integration.playbooks import REPOSITORY, Ansible

USERS = 100  # of the deployed configuration
SPAWN_RATE = 25
UNIT = "rollout-load"
# In production the controller is another machine: here it must not take CPU time from the server.
DEPLOY = ["nice", "-n", "19", "ansible-playbook", "site.yml", "--tags", "model_server", "--limit", "server"]
# Tasks of the role, and the seconds after which they are interrupted.
INSTALLS, LAID_OUT = ("Model server is installed", 1), ("Running service is the one that is deployed", 0)
ROLLS_OVER = ("Model server is rolled over", 2)
BOARD = json.loads((REPOSITORY / "roles/grafana/files/dashboards/model-monitoring.json").read_text())
HOME, DATA = "/opt/model-server", "/var/lib/model-server"
NOT_CODE = {".git", ".venv", ".cache", ".pytest_cache", ".mypy_cache", ".ruff_cache", "build", "credentials", "results"}


@dataclass(frozen=True)
class Deployment:
    release: str
    bundle: str


@dataclass(frozen=True)
class Answer:
    began: float  # seconds since the epoch
    milliseconds: float
    error: str


class Users:
    """The original lab's users, simulated by Locust on the load host, and their results."""

    def __init__(self, load: Machine, folder: str, tell: Tell) -> None:
        self._load, self._folder, self._tell = load, folder, tell
        self._looked_until = 0.0

    def answers(self, since: float = 0, until: float = float("inf")) -> list[Answer]:
        """Return what was on its way between two moments."""
        lines = self._load.run("cat %s/requests.csv || true", self._folder).splitlines()
        answers = [Answer(float(began), float(took), error) for began, took, error in csv.reader(lines[:-1])]
        return [each for each in answers if each.began < until and each.began + each.milliseconds / 1000 > since]

    @contextmanager
    def served_throughout(self, what: str) -> Iterator[None]:
        """Expect an answer in 300 ms at the 99th percentile, and no failed request since the last time."""
        since = time.time()
        yield
        until = time.time()
        answers = self.answers(since, until)
        quantiles = statistics.quantiles([answer.milliseconds for answer in answers], n=100)
        p50, p99 = quantiles[49], quantiles[98]
        failed = [answer for answer in self.answers(self._looked_until, until) if answer.error]
        self._looked_until = until
        self._tell(
            what,
            f"{until - since:.1f} s: {len(failed)} of {len(answers)} requests failed, p50 {p50:.0f} ms, "
            f"p99 {p99:.0f} ms, slowest {max(answer.milliseconds for answer in answers):.0f} ms",
        )
        assert len(answers) > 30 * (until - since), "the load was not there"
        assert failed == []
        assert p99 < 300


@pytest.fixture(scope="module")
def users(load: Machine, tell: Tell) -> Iterator[Users]:
    folder = load.run("mktemp --directory --tmpdir=/var/tmp", user="nobody")
    docker("cp", str(Path(__file__).parent / "request_log.py"), f"{load.container}:{folder}")
    deployed = load.run("sed -n 's/^locustfile = //p' /etc/locust/locust.conf")
    command = f"locust --locustfile {deployed},{folder}/request_log.py --spawn-rate {SPAWN_RATE} --run-time 40m"
    users = Users(load, folder, tell)
    try:
        load.run(f"systemd-run --unit {UNIT} --collect --uid nobody --working-directory {folder} {command}")
        wait_until(lambda: len(users.answers()) > 2 * USERS, timeout=60, what="the load")
        yield users
    finally:
        load.status("systemctl kill --signal=SIGKILL %s", UNIT)  # a stop waits for all users
        load.run("rm --recursive %s", folder)


class ServedModel:
    """What of the model server is deployed, and what answers."""

    def __init__(self, server: Machine, prometheus: Prometheus, ansible: Ansible) -> None:
        self._server, self._prometheus, self._ansible = server, prometheus, ansible
        self.before = self.deployed

    def deploy(self, repository: Path = REPOSITORY, bundle: Path | str = "", sha256: str = "") -> tuple[int, str]:
        """Deploy, and return the play's exit status and what it says."""
        variables = ["--extra-vars", f"model_server_bundle={bundle}"] if bundle else []
        variables += ["--extra-vars", f"model_server_bundle_sha256={sha256}"] if sha256 else []
        return self._ansible.attempt(*DEPLOY, *variables, repository=repository)

    def interrupt_deployment(self, task: str, delay: float, repository: Path) -> None:
        self._ansible.kill_at(task, delay, *DEPLOY, repository=repository)

    def roll_back(self, release: str = "") -> tuple[int, str]:
        """Run rollback.yml, and return its exit status and what it says."""
        named = ["--extra-vars", f"release={release}"] if release else []
        return self._ansible.attempt("ansible-playbook", "playbooks/rollback.yml", *named)

    @property
    def deployed(self) -> Deployment:
        """What the links name, which is what the service was told to run."""
        links = [self._server.run("readlink %s/current", place).rpartition("/")[2] for place in (HOME, DATA)]
        lines = self._server.run("cat /run/model-server-deployment").splitlines()
        running = dict(line.split(": ", 1) for line in lines if ": " in line)
        assert [running["release"], running["bundle"]] == links
        return Deployment(*links)

    def megabytes_beside(self, deployment: Deployment, another: Deployment) -> float:
        """Return what a release takes of the disk beside another one, whose files may be its own."""
        paths = [f"{HOME}/releases/{each.release}" for each in (deployment, another)]
        sizes = self._server.run("du --summarize %s %s", *paths)
        return int(sizes.splitlines()[1].split()[0]) / 1024

    @property
    def info(self) -> Mapping[str, str]:
        """The labels of model_info."""
        page = self._server.get(MODEL_SERVER_PORT, "/metrics").text
        (labels,) = re.findall(r"^model_info\{(.*)\} 1\.0$", page, flags=re.MULTILINE)
        return dict(re.findall(r'(\w+)="([^"]*)"', labels))

    def is_marked(self, since: float) -> bool:
        """Return whether the dashboard marks a moment since then."""
        marks = [question for question in questions(BOARD) if question.panel == "Deployment or restart"]
        moments = [float(series["value"][1]) / 1000 for mark in marks for series in self._prometheus.query(mark.promql)]
        return any(moment > since for moment in moments)

    @property
    def weights_sha256(self) -> str:
        """The checksum of the weights of the current bundle."""
        return self._server.run("sha256sum %s/current/weights.safetensors", DATA).split()[0]

    def changed_bundle(self, directory: Path, statement: str) -> Path:
        """Make a bundle of the current one by a statement that changes `state`, its dictionary of weights."""
        code = f"""
import hashlib, re, shutil, torch
from pathlib import Path
from safetensors.torch import load_file
from model_server.model.loading import to_safetensors
bundle = Path("/var/tmp/changed-bundle")
shutil.rmtree(bundle, ignore_errors=True)
shutil.copytree("{DATA}/current/", bundle)
weights, manifest = bundle / "weights.safetensors", bundle / "model.yaml"
state = load_file(weights)
{statement}
weights.write_bytes(to_safetensors(state))
(bundle / "accuracy.json").unlink(missing_ok=True)  # it is about the former weights
digest = hashlib.sha256(weights.read_bytes()).hexdigest()
text = re.sub("(?m)^weights_sha256: .*$", "weights_sha256: " + digest, manifest.read_text())
manifest.write_text(re.sub("(?m)^version: .*$", "version: '" + digest[:12] + "'", text))
"""
        self._server.run(f"{HOME}/current/venv/bin/python -W ignore -c %s", code)
        docker("cp", f"{self._server.container}:/var/tmp/changed-bundle", str(directory / "bundle"))
        self._server.run("rm --recursive /var/tmp/changed-bundle")
        return directory / "bundle"


@pytest.fixture(scope="module")
def model(server: Machine, prometheus: Prometheus, ansible: Ansible, users: Users) -> Iterator[ServedModel]:
    model = ServedModel(server, prometheus, ansible)
    yield model
    status, output = model.deploy()
    assert status == 0, output
    assert model.deployed == model.before


def changed_code(directory: Path, change: str) -> Path:
    """Copy the repository, and append to the code of the copy."""
    copy = directory / "repository"
    shutil.copytree(REPOSITORY, copy, ignore=lambda _, names: NOT_CODE.intersection(names), symlinks=True)
    with (copy / "model_server" / "app.py").open("a") as code:
        code.write(change)
    return copy


def test_new_code_after_interrupted_deployments(model: ServedModel, users: Users, tmp_path: Path) -> None:
    before, since = model.deployed, time.time()
    repository = changed_code(tmp_path, f"# Another release, of {since}.\n")
    for task, delay in (INSTALLS, LAID_OUT):
        with users.served_throughout(f"new code, killed at '{task}'"):
            model.interrupt_deployment(task, delay, repository)
        assert (model.deployed, model.info["release"]) == (before, before.release)
    with users.served_throughout(f"new code, killed at '{ROLLS_OVER[0]}'"):
        model.interrupt_deployment(*ROLLS_OVER, repository)
    with users.served_throughout("new code, by the next run"):
        status, output = model.deploy(repository)

    assert status == 0, output
    after = model.deployed
    assert (after.release != before.release, after.bundle) == (True, before.bundle)
    assert model.info["release"] == after.release
    assert model.megabytes_beside(before, after) < 50, "PyTorch is there twice"
    wait_until(lambda: model.is_marked(since), timeout=10, what="a mark on the dashboard")


def test_new_weights(model: ServedModel, users: Users, tmp_path: Path) -> None:
    before, weights, since = model.deployed, model.weights_sha256, time.time()
    bundle = model.changed_bundle(tmp_path, "state = {name: value * 1.0001 for name, value in state.items()}")
    archive = tmp_path / "bundle.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        for path in bundle.iterdir():
            packed.add(path, path.name)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    with users.served_throughout("new weights, an archive by its URL"):
        status, output = model.deploy(bundle=archive.as_uri(), sha256=sha256)

    assert status == 0, output
    assert model.deployed.bundle != before.bundle
    assert model.info["sha256"] == model.weights_sha256 != weights
    wait_until(lambda: model.is_marked(since), timeout=10, what="a mark on the dashboard")


def test_rollback(model: ServedModel, users: Users) -> None:
    before, since = model.deployed, time.time()
    with users.served_throughout("rollback.yml"):
        status, output = model.roll_back()
        took = time.time() - since

    assert status == 0, output
    assert took < 10
    after = model.deployed
    assert after.release != before.release
    assert after.bundle != before.bundle
    assert (model.info["release"], model.info["sha256"]) == (after.release, model.weights_sha256)
    wait_until(lambda: model.is_marked(since), timeout=10, what="a mark on the dashboard")


def test_rollback_to_a_named_release(model: ServedModel, users: Users) -> None:
    with users.served_throughout("rollback.yml to a named release"):
        status, output = model.roll_back(model.before.release)

    assert status == 0, output
    assert model.deployed.release == model.info["release"] == model.before.release


def test_bundle_that_fails_its_check_is_refused(model: ServedModel, users: Users, tmp_path: Path) -> None:
    before, info = model.deployed, model.info
    bundle = model.changed_bundle(tmp_path, "state.popitem()")
    with users.served_throughout("bundle that lacks weights"):
        status, output = model.deploy(bundle=bundle)

    assert status != 0
    assert "weights.safetensors" in output
    assert (model.deployed, model.info) == (before, info)


def test_release_that_does_not_start_is_refused(model: ServedModel, users: Users, tmp_path: Path) -> None:
    before, info = model.deployed, model.info
    sentence = "model server: This release was made not to start."
    repository = changed_code(tmp_path, f"\n\ndef app_from_environment() -> FastAPI:\n    sys.exit({sentence!r})\n")
    with users.served_throughout("release that does not start"):
        status, output = model.deploy(repository)

    assert status != 0
    assert sentence in output
    assert (model.deployed, model.info) == (before, info)


def test_users_are_served_while_nothing_happens(users: Users) -> None:
    with users.served_throughout("no deployment"):
        time.sleep(10)
