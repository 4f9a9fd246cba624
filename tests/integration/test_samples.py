"""Images that were rejected, uncertain or outlying are kept below a cap, fetched by a play, and labelled."""

from __future__ import annotations

import csv
import io
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.integration.conftest import Tell
from tests.integration.machines import Machine, ModelServer, wait_until
from tests.integration.playbooks import REPOSITORY, Ansible
from tests.integration.traffic import IMAGES

PLAYBOOK = "playbooks/samples.yml"
DIRECTORY = "/var/lib/model-server/samples"
MAX_BYTES = 20_000_000  # molecule/shared/host_vars/server.yml
REASONS = ("rejected", "uncertain", "outlying")
# Of the lab's images, the darkest ones are beyond the reference, and of some others the model is unsure.
DARKNESSES = (0.3, 0.5, 0.6, 0.7)
SECRET = "51.5007 N, 0.1246 W"  # as a phone writes it into its photos


def darkened(number: int) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = SECRET
    image = Image.open(io.BytesIO(IMAGES[number % len(IMAGES)])).convert("RGB")
    factor = DARKNESSES[number % len(DARKNESSES)]
    buffer = io.BytesIO()
    image.point(lambda value: int(value * factor)).save(buffer, "JPEG", exif=exif.tobytes(), comment=SECRET)
    return buffer.getvalue()


def kept(model_server: ModelServer) -> dict[str, float]:
    counters = model_server.counters()
    return {reason: counters[f'samples_kept_total{{reason="{reason}"}}'] for reason in REASONS}


@pytest.fixture(scope="module", autouse=True)
def began(model_server: ModelServer, tell: Tell) -> int:
    """Send images until some are kept for each reason; fewer than a drift alert needs to be judged by.

    Returns the name that a sample would have had before; what is below it is of former runs.
    """
    began = time.time_ns()
    before = kept(model_server)
    numbers = count()

    def some_are_kept() -> bool:
        number = next(numbers)
        assert number < 180, kept(model_server)
        image = darkened(number)
        with model_server.http() as client:  # a connection of its own: each worker gets some
            answers = [client.post("/predict", files={"file": ("a.jpg", data)}) for data in (image, image[:-500])]
        assert [answer.status_code for answer in answers] == [200, 400]
        return all(value >= before[reason] + 2 for reason, value in kept(model_server).items())

    seconds = wait_until(some_are_kept, timeout=90, what="samples of each reason")
    tell("samples of each reason", f"kept within {seconds:.0f} s")
    return began


@pytest.fixture(scope="module")
def fetched(ansible: Ansible, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the server after a play."""
    place = tmp_path_factory.mktemp("samples")
    output = ansible.run("ansible-playbook", PLAYBOOK, "--extra-vars", f"samples={place}")
    (folder,) = place.glob("*/server")
    assert f"{folder}: " in " ".join(output.split())
    return folder


def test_samples_are_for_the_service_alone_and_below_the_cap(server: Machine) -> None:
    assert server.run("stat --format '%%a %%U' %s", DIRECTORY) == "700 model-server"
    assert server.run("find %s -type f -not -perm 600", DIRECTORY) == ""
    blocks = server.run("find %s -type f -printf '%%b\\n'", DIRECTORY).split()
    assert 0 < sum(map(int, blocks)) * 512 <= MAX_BYTES
    assert server.status("ls %s", DIRECTORY, user="nobody") != 0


def test_metadata_are_not_kept(server: Machine) -> None:
    assert server.status("grep --recursive --quiet --fixed-strings %s %s", SECRET, DIRECTORY) == 1


def test_samples_are_on_the_controller(fetched: Path) -> None:
    with Image.open(fetched / "contact-sheet.png") as sheet:
        sheet.load()
        assert sheet.format == "PNG"
    for reason in REASONS:
        images = [path for path in (fetched / reason).iterdir() if path.suffix != ".json"]
        assert len(images) >= 2, reason
        assert all(path.with_suffix(".json").is_file() for path in images)
    for path in (fetched / "outlying").glob("*.jpg"):
        with Image.open(path) as image:
            image.load()
            assert dict(image.getexif()) == {}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (fetched, fetched.parent)} == {0o700}
    assert subprocess.run(["git", "check-ignore", "--quiet", "samples/x"], cwd=REPOSITORY, check=False).returncode != 1


def test_a_play_leaves_nothing_on_the_host_and_can_be_run_again(
    server: Machine, ansible: Ansible, fetched: Path
) -> None:
    ansible.run("ansible-playbook", PLAYBOOK, "--extra-vars", f"samples={fetched.parents[1]}")
    assert len(list(fetched.parents[1].glob("*/server/contact-sheet.png"))) == 2
    assert server.run("find /var/tmp -name 'samples-*'") == ""


def test_check_mode_tells_how_many_there_are(ansible: Ansible, tmp_path: Path) -> None:
    output = ansible.run("ansible-playbook", PLAYBOOK, "--check", "--extra-vars", f"samples={tmp_path}")
    assert " outlying, " in " ".join(output.split())
    assert list(tmp_path.iterdir()) == []


def test_labels_become_feedback(model_server: ModelServer, fetched: Path, began: int, tmp_path: Path) -> None:
    with (fetched / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(Path(row["file"]).name.partition("-")[0]) >= began]
    assert len(rows) >= 4  # those of former runs may have had their feedback
    table = tmp_path / "labels.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([{**row, "label": "apple"} for row in rows[:3]] + rows[3:])
    url = f"http://{model_server.machine.address}:8000"
    command = [sys.executable, "-m", "model_server", "feedback", str(table), "--url", url]
    said = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout

    assert said.startswith("feedback: 3 counted"), said


@pytest.fixture
def _closed(server: Machine) -> Iterator[None]:
    server.run("chown root %s", DIRECTORY)
    try:
        yield
    finally:
        server.run("chown model-server %s", DIRECTORY)


@pytest.mark.usefixtures("_closed")
def test_a_directory_that_cannot_be_written_is_counted_and_harmless(server: Machine, model_server: ModelServer) -> None:
    def fails() -> bool:
        with model_server.http() as client:
            answer: httpx.Response = client.post("/predict", files={"file": ("a.jpg", b"no image")})
        assert answer.status_code == 400
        return model_server.counters()["samples_failed_total"] > before

    before = model_server.counters()["samples_failed_total"]
    wait_until(fails, timeout=20, what="a sample that could not be kept")
    said = "An image could not be kept as a sample"  # the journal may have it later than the page
    wait_until(lambda: said in server.journal("model-server", "-2min", 200), timeout=10, what=said)
