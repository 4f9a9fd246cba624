"""The metrics of a shadow: what the next model says of copies of requests, beside the model that serves.

They are on the server's own page /metrics: the shadow counts in the workers' directory, under a name of its own.
"""

import contextlib
import math
from pathlib import Path
from typing import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from model_server.metrics.classes import ClassSeries
from model_server.metrics.predictions import STAGE_SECONDS
from model_server.metrics.values import count_as
from model_server.model.accuracy import CONFIDENCES
from model_server.model.bundle import Manifest

PROCESS = "shadow"
PREFIX = "shadow_"  # of these metrics, and of no others
STAGES = ("decode", "preprocess", "forward")


class ShadowMetrics:
    """The metrics of one shadow.

    Attributes:
        registry: where the metrics belong.
    """

    def __init__(self, manifest: Manifest, classes: ClassSeries) -> None:
        self.registry = CollectorRegistry()
        predictions = Counter(
            "shadow_predictions",
            "Predictions of the shadow by its class, and whether the model that serves says the same",
            ["class", "agrees"],
            registry=self.registry,
        )
        confidence = Histogram(
            "shadow_prediction_confidence",
            "Softmax of the shadow's likely class, by class",
            ["class"],
            buckets=CONFIDENCES,
            registry=self.registry,
        )
        stages = Histogram(
            "shadow_stage_cpu_seconds",
            "Processor time of the shadow's predictions in their stages",
            ["stage"],
            buckets=STAGE_SECONDS,
            registry=self.registry,
        )
        info = Gauge(
            "shadow_info",
            "The model of the shadow",
            ["name", "version", "architecture", "sha256"],
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        info.labels(manifest.name, manifest.version, manifest.architecture, manifest.weights_sha256).set(1)
        self._failures = Counter(
            "shadow_failures", "Images of which the shadow could say nothing", registry=self.registry
        )
        self._ratio = Gauge(
            "shadow_agreement_ratio",
            "Share of the copied requests of which the shadow says the same as the model that serves",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._ratio.set(math.nan)  # until there is one to compare
        self._agreed, self._compared = 0, 0
        self._predictions = {
            (name, agrees): predictions.labels(name, str(agrees).lower())
            for name in classes.labels.values()
            for agrees in (True, False)
        }
        self._confidence = {name: confidence.labels(name) for name in classes.labels.values()}
        self._named = classes.labels
        self._stages = {stage: stages.labels(stage) for stage in STAGES}

    def predict(self, likely_class: str, confidence: float, served_class: str, stages: Mapping[str, float]) -> None:
        """Record a prediction beside that of the model that serves, and the processor seconds of its stages."""
        agrees = likely_class == served_class
        named = self._named[likely_class]
        self._predictions[named, agrees].inc()
        self._confidence[named].observe(0.0 if math.isnan(confidence) else confidence)
        for stage, seconds in stages.items():
            self._stages[stage].observe(seconds)
        self._count(agrees)

    def fail(self) -> None:
        """Record an image of which the shadow could say nothing; that is no agreement."""
        self._failures.inc()
        self._count(False)

    def _count(self, agrees: bool) -> None:
        self._agreed += agrees
        self._compared += 1
        self._ratio.set(self._agreed / self._compared)


@contextlib.contextmanager
def counted(metrics_dir: Path) -> Iterator[None]:
    """Let this process count as the shadow, from 0 on; afterwards nothing of it is on the page."""
    _remove(metrics_dir)
    count_as(PROCESS)
    try:
        yield
    finally:
        _remove(metrics_dir)


def _remove(metrics_dir: Path) -> None:
    for path in metrics_dir.glob(f"*_{PROCESS}.db"):
        path.unlink()
