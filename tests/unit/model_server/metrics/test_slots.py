from pathlib import Path

import pytest

from model_server.metrics.slots import Slot, check_metrics_dir, release_free_slots
from model_server.settings import SettingsError


def test_a_writable_directory_is_left_as_it_is(tmp_path: Path) -> None:
    check_metrics_dir(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_directory_is_explained() -> None:
    with pytest.raises(SettingsError, match=r"^PROMETHEUS_MULTIPROC_DIR is not set; "):
        check_metrics_dir(None)


def test_a_directory_without_write_permission_is_explained(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"^PROMETHEUS_MULTIPROC_DIR is '.*/none', where .*: No such file or directory\.$"
    ):
        check_metrics_dir(tmp_path / "none")


def test_a_slot_is_one_worker_s_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    first, second = Slot.claim(tmp_path, []), Slot.claim(tmp_path, [])
    assert (first.number, second.number) == (0, 1)
    assert Slot.claim(tmp_path, [2]).number == 3
    (tmp_path / "gauge_livesum_0.db").touch()
    (tmp_path / "gauge_livesum_1.db").touch()
    (tmp_path / "counter_0.db").touch()
    first.close()
    release_free_slots(tmp_path)
    assert not (tmp_path / "gauge_livesum_0.db").exists(), "what a lost worker had in progress"
    assert (tmp_path / "gauge_livesum_1.db").exists(), "what a living one has"
    assert (tmp_path / "counter_0.db").exists()
    assert Slot.claim(tmp_path, []).number == 0
    second.close()
