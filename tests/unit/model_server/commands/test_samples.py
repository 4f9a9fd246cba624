import csv
import io
import json
import math
import tarfile
from pathlib import Path
from random import Random
from typing import Any, Dict, Iterator, List

import pytest
from PIL import Image, ImageEnhance
from prometheus_client.parser import text_string_to_metric_families

from model_server.commands.cli import main
from model_server.commands.drawings import FRUITS, draw_fruit
from model_server.feedback import PredictionIds
from model_server.metrics.samples import SampleReason
from model_server.model.bundle import read_bundle, write_bundle
from model_server.server.ring import Ring, read_ring
from tests.unit.model_server.bundle_fields import SMALL
from tests.unit.model_server.test_samples import Server, hurry

REJECTED, UNCERTAIN, OUTLYING = SampleReason


@pytest.fixture
def ring(encode: Any, tmp_path: Path) -> Path:
    ring = Ring(tmp_path / "ring", 10_000_000)
    for number in range(3):
        answer = {"class": "apple", "confidence": 0.3, "prediction_id": f"id-{number}", "outlying": []}
        ring.keep(UNCERTAIN, encode(), ".jpg", answer)
    ring.keep(REJECTED, b"none", ".bin", {"rejected": "undecodable", "error": "none"})
    ring.keep(OUTLYING, encode(), ".jpg", {"class": "=lemon", "confidence": None, "prediction_id": None})
    return tmp_path / "ring"


def unpack(archive: Path, place: Path) -> List[str]:
    with tarfile.open(str(archive)) as tar:
        assert {member.mode for member in tar.getmembers()} == {0o600}
        for member in tar.getmembers():
            content = tar.extractfile(member)
            assert content is not None
            (place / member.name).parent.mkdir(parents=True, exist_ok=True)
            (place / member.name).write_bytes(content.read())
        return tar.getnames()


def rows_of(table: Path) -> List[Dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_samples_are_packed_by_reason_with_a_sheet_and_a_table(ring: Path, tmp_path: Path, capsys: Any) -> None:
    archive = tmp_path / "samples.tar"
    main(["samples", str(ring), "--out", str(archive)])
    main(["samples", str(ring), "--out", str(archive)])  # in place of the former

    names = unpack(archive, tmp_path / "out")
    assert archive.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.glob(".*")] == []
    assert {name.partition("/")[0] for name in names} == {
        *("rejected", "uncertain", "outlying", "contact-sheet.png", "labels.csv")
    }
    for sample in read_ring(ring):
        copy = tmp_path / "out" / sample.reason.value / sample.image.name
        assert copy.read_bytes() == sample.image.read_bytes()
        assert json.loads(copy.with_suffix(".json").read_text()) == sample.answer
    with Image.open(tmp_path / "out" / "contact-sheet.png") as sheet:
        assert sheet.format == "PNG"
    rows = rows_of(tmp_path / "out" / "labels.csv")
    assert [row["id"] for row in rows] == ["id-0", "id-1", "id-2", ""]
    assert [row["label"] for row in rows] == [""] * 4
    assert [row["likely_class"] for row in rows] == ["apple"] * 3 + ["=lemon"]
    assert [row["confidence"] for row in rows] == ["0.3"] * 3 + [""]
    assert all((tmp_path / "out" / row["file"]).is_file() for row in rows)
    said = capsys.readouterr()
    assert (said.out, said.err.splitlines()[-1]) == ("", "samples: 1 rejected, 3 uncertain, 1 outlying")


def test_standard_output_can_be_the_archive(ring: Path, capsysbinary: Any) -> None:
    main(["samples", str(ring), "--out", "-"])
    with tarfile.open(fileobj=io.BytesIO(capsysbinary.readouterr().out)) as tar:
        assert len(tar.getnames()) == 2 * 5 + 2


def test_a_sample_that_goes_meanwhile_is_left_out(ring: Path, tmp_path: Path, capsys: Any) -> None:
    first = read_ring(ring)[0]
    first.image.unlink()
    main(["samples", str(ring), "--out", str(tmp_path / "samples.tar")])
    assert "0 rejected, 3 uncertain" in capsys.readouterr().err
    assert not (tmp_path / "rejected").exists()


def test_what_cannot_be_done_ends_with_a_sentence(ring: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^samples: .*/none has no samples; the server keeps them there when"):
        main(["samples", str(tmp_path / "none"), "--out", str(tmp_path / "x.tar")])
    with pytest.raises(SystemExit, match=r"^samples: .*/none/x.tar cannot be written: No such file or directory\.$"):
        main(["samples", str(ring), "--out", str(tmp_path / "none" / "x.tar")])


# What Prometheus computes for the alert FeatureDrift.
PSI_OF_THE_ALERT, SMALLEST_SHARE = 0.25, 0.0001


def psi(page: str) -> Dict[str, float]:
    counts: Dict[str, Dict[str, float]] = {}
    shares: Dict[str, Dict[str, float]] = {}
    places = {"feature_observations_total": counts, "feature_reference_ratio": shares}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name in places:
                found = places[sample.name].setdefault(sample.labels["feature"], {})
                found[sample.labels["bin"]] = sample.value
    result = {}
    for feature, expected in shares.items():
        total = sum(counts[feature].values())
        pairs = [
            (max(counts[feature][bin_] / total, SMALLEST_SHARE), max(share, SMALLEST_SHARE))
            for bin_, share in expected.items()
        ]
        result[feature] = sum((seen - share) * math.log(seen / share) for seen, share in pairs)
    return result


def drawings(seeds: range, brightness: float) -> Iterator[bytes]:
    for seed in seeds:
        buffer = io.BytesIO()
        drawing = draw_fruit(list(FRUITS)[seed % 3], Random(seed), 64, 48)
        ImageEnhance.Brightness(drawing).enhance(brightness).save(buffer, "PNG")
        yield buffer.getvalue()


def test_from_an_alert_over_the_samples_to_a_new_reference_that_clears_it(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    torch = pytest.importorskip("torch")
    from model_server.model.classifier import Classifier
    from model_server.model.fruit_classifier import FruitClassifier
    from model_server.model.loading import to_safetensors

    def served(seeds: range, **settings: Any) -> Server:
        server = Server(Classifier(read_bundle(bundle)), tmp_path / "ring", samples_max_bytes=30_000_000, **settings)
        server.send(*drawings(seeds, brightness=0.3), kind="image/png")
        return server

    torch.manual_seed(0)
    bundle = tmp_path / "bundle"
    write_bundle(bundle, to_safetensors(FruitClassifier(3, 32).state_dict()), SMALL)
    (tmp_path / "typical").mkdir()
    for number, image in enumerate(drawings(range(200), brightness=1.0)):
        (tmp_path / "typical" / f"{number}.png").write_bytes(image)
    main(["reference", "--bundle", str(bundle), str(tmp_path / "typical")])
    (tmp_path / "keys").write_text("k" * 32)

    # The alert: all images are dark.
    server = served(range(1000, 1220), samples_below_confidence=0.0, feedback_keys_file=tmp_path / "keys", wait=0.1)
    assert psi(server.page)["brightness"] > PSI_OF_THE_ALERT

    # Fetched, looked at and labelled.
    main(["samples", str(tmp_path / "ring"), "--out", str(tmp_path / "samples.tar")])
    unpack(tmp_path / "samples.tar", tmp_path / "samples")
    table = tmp_path / "samples" / "labels.csv"
    rows = rows_of(table)
    assert len(rows) > 150
    assert {row["reason"] for row in rows} == {"outlying"}
    ids = PredictionIds(tmp_path / "keys")
    assert {ids.read(row["id"]).likely_class for row in rows} <= set(SMALL["classes"])
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "label": row["likely_class"]} for row in rows)

    # The next reference: other images of the new kind raise no alert, and none of them is outlying.
    main(["reference", "--bundle", str(bundle), str(table)])
    assert f"{len(rows)} of {len(rows)} images described" in capsys.readouterr().out
    after = served(range(2000, 2220), samples_below_confidence=0.0, wait=0.0)
    assert max(psi(after.page).values()) < PSI_OF_THE_ALERT
