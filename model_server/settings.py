"""The settings of the server, read from environment variables."""

import difflib
import os
from pathlib import Path
from typing import Literal, Optional, Type, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "MODEL_SERVER_"
METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"


class SettingsError(ValueError):
    """A setting that cannot be used; the message is one sentence that names the variable."""


class WeightsSettings(BaseSettings):
    """Settings of everything that loads weights: the server and the commands."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    allow_pickle: bool = Field(
        False, description="load a weights.pt with torch before 2.6, in which such a file can run code"
    )
    engine: Literal["", "torch", "onnxruntime", "ncnn"] = Field(
        "", description="what runs the model; empty: what its bundle says"
    )


CLASS_SERIES = 50


class Settings(WeightsSettings):
    """Settings of the server; field `x` is read from the variable `MODEL_SERVER_X`.

    The one exception is `metrics_dir`, read from `PROMETHEUS_MULTIPROC_DIR`: prometheus_client looks
    at that variable while it is imported, so it has to be set before the process starts.
    """

    bundle: Path = Field(description="directory of the bundle, with model.yaml")
    bind: str = Field("127.0.0.1:8000", description="address to listen on, unless systemd hands a socket over")
    workers: int = Field(1, ge=1, le=256, description="worker processes, each with one torch thread")
    timeout: int = Field(30, ge=1, description="seconds without a heartbeat after which a worker is killed")
    graceful_timeout: int = Field(30, ge=1, description="seconds that requests get to finish when a worker stops")
    keep_alive: int = Field(
        620, ge=1, description="seconds that an unused connection is kept; longer than clients and balancers keep it"
    )
    max_queue_seconds: float = Field(1.0, gt=0, description="a prediction that would wait longer is refused (503)")
    max_connections: int = Field(8192, ge=16, description="connections of a worker; further ones wait")
    fault_injection: bool = Field(False, description="answer 500 to the content type fake_server_error/*")
    max_body_bytes: int = Field(20 * 1024 * 1024, ge=1024, description="a larger request body is refused (413)")
    max_image_pixels: int = Field(50_000_000, ge=1024, description="an image of more pixels is refused (413)")
    allowed_origins: str = Field("", description="origins of pages that may ask, with commas between them; or *")
    api_keys: str = Field("", description="keys of /predict: NAME:SHA256 of each secret, with commas between them")
    feedback_keys_file: Optional[Path] = Field(
        None, description="file of keys, one in a line, that sign ids of predictions; without it there is no /feedback"
    )
    internal_pages_from: str = Field(
        "", description="who sees /metrics, /docs, /healthz and /readyz beside the host itself; all when empty"
    )
    trusted_proxies: str = Field("127.0.0.1,::1", description="proxies whose X-Forwarded-For is believed, with commas")
    docs: bool = Field(True, description="show the interface at /docs, /redoc and /openapi.json")
    decoding: Literal["exact", "fast"] = Field("exact", description="fast: large JPEGs are decoded at a reduced scale")
    class_series: int = Field(
        CLASS_SERIES, ge=2, description="series by class; where a model has more, rare classes share one named (other)"
    )
    samples_directory: Optional[Path] = Field(
        None, description="directory where some images are kept to be looked at; without it, none are"
    )
    samples_max_bytes: int = Field(100_000_000, ge=1_000_000, description="what they may take on the disk, in bytes")
    samples_below_confidence: float = Field(
        0.5, ge=0, le=1, description="an image whose likely class has less confidence is kept as uncertain"
    )
    release: str = Field("", description="name of the release, for the metrics")
    runtime_dir: Optional[Path] = Field(None, description="directory of the service while it runs, for handovers")
    metrics_dir: Optional[Path] = Field(None, validation_alias=METRICS_DIR, description="shared by all workers")

    def is_drained(self) -> bool:
        """Return whether the host's administrator has taken this server out of service; it goes on answering."""
        return self.runtime_dir is not None and (self.runtime_dir / "drained").exists()


AnySettings = TypeVar("AnySettings", bound=WeightsSettings)


def read_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: a `MODEL_SERVER_*` variable is unknown, missing or has a value that is not allowed.
    """
    return _read(Settings)


def read_weights_settings() -> WeightsSettings:
    """Read the settings of the commands from the environment.

    Raises:
        SettingsError: a `MODEL_SERVER_*` variable is unknown, or one of these has a value that is not allowed.
    """
    return _read(WeightsSettings)


def _read(kind: Type[AnySettings]) -> AnySettings:
    known = [PREFIX + name.upper() for name in Settings.model_fields if name != "metrics_dir"]
    for variable in sorted(os.environ):
        if variable.upper().startswith(PREFIX) and variable.upper() not in known:
            near = difflib.get_close_matches(variable.upper(), known, n=1, cutoff=0.85)
            hint = f"did you mean {near[0]}?" if near else "known are " + ", ".join(known) + "."
            raise SettingsError(f"{variable} is not a setting of the model server; {hint}")
    try:
        return kind()
    except ValidationError as error:
        problem = error.errors()[0]
        field = str(problem["loc"][0])
        variable = field if field == METRICS_DIR else PREFIX + field.upper()
        if problem["type"] == "missing":
            sentence = f"{variable} is not set; it names the {Settings.model_fields[field].description}."
        else:
            sentence = f"{variable} is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}."
        raise SettingsError(sentence) from None
