from pathlib import Path

import pytest

from model_server.settings import Settings, SettingsError, read_settings


@pytest.fixture(autouse=True)
def _bundle(monkeypatch: pytest.MonkeyPatch, _clean_environment: None) -> None:
    monkeypatch.setenv("MODEL_SERVER_BUNDLE", "/somewhere")


def test_defaults_are_safe() -> None:
    settings = read_settings()
    assert settings.bundle == Path("/somewhere")
    assert settings.fault_injection is False
    assert settings.bind == "127.0.0.1:8000"
    assert settings.max_body_bytes == 20 * 1024 * 1024
    assert settings.metrics_dir is None


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVER_WORKERS", "4")
    monkeypatch.setenv("MODEL_SERVER_FAULT_INJECTION", "true")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/run/metrics")
    settings = read_settings()
    assert (settings.workers, settings.fault_injection, settings.metrics_dir) == (4, True, Path("/run/metrics"))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MODEL_SERVER_WORKERS", "0"),
        ("MODEL_SERVER_WORKERS", "many"),
        ("MODEL_SERVER_FAULT_INJECTION", "perhaps"),
        ("MODEL_SERVER_MAX_BODY_BYTES", "-1"),
        ("MODEL_SERVER_MAX_IMAGE_PIXELS", "1.5"),
        ("MODEL_SERVER_TIMEOUT", ""),
        ("MODEL_SERVER_DECODING", "quick"),
        ("MODEL_SERVER_ENGINE", "tensorrt"),
    ],
)
def test_a_bad_value_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"^{variable} is '{value}': .*[^.]\\.$"):
        read_settings()


def test_a_missing_bundle_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODEL_SERVER_BUNDLE")
    with pytest.raises(SettingsError, match=r"^MODEL_SERVER_BUNDLE is not set; it names the directory "):
        read_settings()


def test_an_unknown_variable_gets_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVER_WORKER", "2")
    with pytest.raises(SettingsError, match=r"^MODEL_SERVER_WORKER is not .*mean MODEL_SERVER_WORKERS\?$"):
        read_settings()


def test_an_unlike_variable_gets_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVER_QQQ", "2")
    names = r"known are MODEL_SERVER_ALLOW_PICKLE, MODEL_SERVER_ENGINE, .*MODEL_SERVER_DECODING, .*\.$"
    with pytest.raises(SettingsError, match=names):
        read_settings()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().workers = 3  # type: ignore[misc]
