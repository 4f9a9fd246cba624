from pathlib import Path

import pytest

from model_server.monitoring import check_metrics_dir
from model_server.settings import SettingsError


def test_a_directory_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    check_metrics_dir(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_directory_is_explained() -> None:
    with pytest.raises(SettingsError, match=r"^PROMETHEUS_MULTIPROC_DIR is not set; "):
        check_metrics_dir(None)


def test_a_directory_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"^PROMETHEUS_MULTIPROC_DIR is '.*/none', where .*: No such file or directory\.$"
    ):
        check_metrics_dir(tmp_path / "none")
