"""The metrics of predictions: stages, sizes, classes, confidences, rejected inputs and features."""

import math
import random
import time
from enum import Enum
from itertools import product
from typing import TYPE_CHECKING, Dict, Iterable, Optional, Sequence, Tuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from model_server.metrics._prometheus_client import Observer, value_of
from model_server.metrics.classes import ClassSeries
from model_server.metrics.samples import SampleMetrics
from model_server.model.accuracy import CONFIDENCES, Accuracy
from model_server.model.bundle import Manifest
from model_server.model.reference import FEATURES, Observation, Reference
from model_server.settings import CLASS_SERIES, Settings

if TYPE_CHECKING:  # the import of torch takes seconds
    from torch import Tensor

    # The likely class, its confidence, the logits of all classes and the projections of the layer before the last.
    ModelAnswer = Tuple[str, float, Tensor, Tensor]

STAGES = ("read", "queue", "decode", "preprocess", "forward")  # in the order of a request
UNKNOWN_KEY = "unknown"  # the name of a key that the server does not know
STAGE_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
SAMPLE_INTERVAL = 0.15  # seconds, in each worker


class Reason(Enum):
    """Why an input is rejected, as the metrics name it."""

    NOT_AN_IMAGE = "not_an_image"
    EMPTY = "empty"
    UNDECODABLE = "undecodable"
    IMAGE_TOO_LARGE = "image_too_large"
    BODY_TOO_LARGE = "body_too_large"
    MALFORMED_FORM = "malformed_form"
    MISSING_FILE = "missing_file"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    INCOMPLETE = "incomplete"
    ABANDONED = "abandoned"
    TIMEOUT = "timeout"
    OVERLOADED = "overloaded"
    UNAUTHORIZED = "unauthorized"


class RequestTimings:
    """What is measured of one request to the model; it is recorded when the request ends.

    Recording everything at once costs a third of recording each value when it is known: a decoder or a forward pass
    evicts the metrics from the processor's caches.

    Attributes:
        received: when the body was complete, in seconds of the performance counter.
        size: of the image file, in bytes.
        pixels: width × height of the decoded image.
        stages: seconds spent in each that came to an end.
    """

    def __init__(self) -> None:
        self.size: Optional[int] = None
        self.pixels: Optional[int] = None
        self.stages: Dict[str, float] = {}
        self._begun = self._lap_begun = time.perf_counter()

    def lap(self, stage: str) -> None:
        """End a stage and begin the next one; the seconds of a stage that ended before are added up."""
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._lap_begun
        self._lap_begun = now

    @property
    def received(self) -> float:
        return self._begun + self.stages["read"]


class ModelMetrics:
    """The metrics of one model.

    Every time series exists from the start, as 0. Its object is kept, because looking it up by labels is slow.

    Attributes:
        registry: where the metrics belong.
        constants: lines of the page /metrics that never change.
        classes: which series the classes have.
        samples: of the images that are kept; None where none are.
    """

    def __init__(
        self,
        manifest: Manifest,
        reference: Optional[Reference],
        accuracy: Optional[Accuracy],
        settings: Optional[Settings] = None,
        key_names: Sequence[str] = (),
    ) -> None:
        self.registry = CollectorRegistry()
        release, limit = ("", CLASS_SERIES) if settings is None else (settings.release, settings.class_series)
        self.classes = ClassSeries(manifest.classes, reference, limit)
        ratios = None if reference is None else self.classes.ratios(reference)
        self.constants = generate_latest(_Constants(manifest, ratios, accuracy, release))
        predictions = Counter("predictions", "Predictions made, by class", ["class"], registry=self.registry)
        confidence = Histogram(
            "prediction_confidence",
            "Softmax of the likely class, by class",
            ["class"],
            buckets=CONFIDENCES,
            registry=self.registry,
        )
        stages = Histogram(
            "inference_stage_duration_seconds",
            "Time that a prediction spends in its stages",
            ["stage"],
            buckets=STAGE_SECONDS,
            registry=self.registry,
        )
        rejected = Counter(
            "rejected_inputs", "Inputs that no prediction was made for, by reason", ["reason"], registry=self.registry
        )
        sizes = Histogram(
            "input_bytes",
            "Size of the image files that came to be decoded",
            buckets=[1000 * 4**k for k in range(8)],
            registry=self.registry,
        )
        pixels = Histogram(
            "input_pixels",
            "Width × height of the decoded images",
            buckets=[1000 * 4**k for k in range(9)],
            registry=self.registry,
        )
        self._bytes, self._pixels = Observer(sizes), Observer(pixels)
        self._depth = Gauge("queue_depth", "Predictions that wait", registry=self.registry, multiprocess_mode="livesum")
        self._wait = Gauge(
            "queue_wait_estimate_seconds",
            "Seconds that a new prediction would wait, in the worker where it is longest",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self._queued = 0, 0.0
        self._callers: Dict[Tuple[str, bool], Counter] = {}
        if key_names:
            callers = Counter(
                "api_key_requests",
                "Requests to /predict by the name of their key, and whether it was accepted",
                ["key", "accepted"],
                registry=self.registry,
            )
            for name, accepted in [*product(key_names, (True, False)), (UNKNOWN_KEY, False)]:
                self._callers[name, accepted] = callers.labels(name, str(accepted).lower())
        self._stages = {stage: Observer(stages.labels(stage)) for stage in STAGES}
        labelled = {
            label: (value_of(predictions.labels(label)), Observer(confidence.labels(label)))
            for label in self.classes.labels.values()
        }
        self._classes = {name: labelled[label] for name, label in self.classes.labels.items()}
        self._reasons = {reason: rejected.labels(reason.value) for reason in Reason}
        self._expected: Sequence[float] = ()
        if accuracy is not None:
            expected = accuracy.expected()
            self._expected = (*expected, expected[-1])  # rounded, a confidence may be just above 1
            expected_right = Counter(
                "expected_right_predictions",
                "Predictions that are right, as far as the model's accuracy by confidence tells",
                registry=self.registry,
            )
            self._expected_right = value_of(expected_right)
        self._features = None if reference is None else _FeatureMetrics(reference, self.classes, self.registry)
        keeps_samples = settings is not None and settings.samples_directory is not None
        self.samples = SampleMetrics(self.registry) if keeps_samples else None
        self._series = {
            (sample.name, tuple(sorted(sample.labels.items())))
            for family in self.registry.collect()
            for sample in family.samples
        }

    def has(self, sample: str, labels: Tuple[Tuple[str, str], ...]) -> bool:
        """Return whether a series is one of this model's, by the name of its samples and its sorted labels."""
        return (sample, labels) in self._series

    def record(self, timings: RequestTimings) -> None:
        """Record a request, also one that failed."""
        for stage, seconds in timings.stages.items():
            self._stages[stage].observe(seconds)
        if timings.size is not None:
            self._bytes.observe(timings.size)
        if timings.pixels is not None:
            self._pixels.observe(timings.pixels)

    def reject(self, reason: Reason) -> None:
        self._reasons[reason].inc()

    def authorize(self, key_name: str, accepted: bool) -> None:
        """Record a request with a key of this name."""
        self._callers[key_name, accepted].inc()

    def queue(self, depth: int, wait: float) -> None:
        """Record how many predictions wait, and the seconds that a new one would wait."""
        if (depth, wait) != self._queued:  # mostly, nothing waits
            self._queued = depth, wait
            self._depth.set(depth)
            self._wait.set(wait)

    def predict(self, timings: RequestTimings, pixels: "Tensor", answer: "ModelAnswer") -> Observation:
        """Record a prediction: what the model saw, and what it said; return its features, if they were measured."""
        likely_class, confidence, logits, projections = answer
        if math.isnan(confidence):  # of a broken model; the sum of the histogram would be NaN from then on
            confidence = 0.0
        count, confidences = self._classes[likely_class]
        count.inc(1)
        bin_ = confidences.observe(confidence)
        if self._expected:
            self._expected_right.inc(self._expected[bin_])
        if self._features is None or not self._features.is_due(timings.received):
            return ()
        return self._features.observe(pixels, (likely_class, confidence, logits, projections))


class _FeatureMetrics:
    """Counts the features of predictions by the bins of the reference.

    Measuring costs 2 % of a prediction, so only a sample is measured: the first request received after a random delay,
    `SAMPLE_INTERVAL` on average. Sampling by finish time would favour large images, by start time fast uploads.
    """

    def __init__(self, reference: Reference, classes: ClassSeries, registry: CollectorRegistry) -> None:
        from model_server.metrics.features import observe  # noqa: PLC0415 - imports torch

        self._observe = observe
        self._due = 0.0
        self._bin, self._class_bins = reference.bin, classes.bins
        observations = Counter(
            "feature_observations",
            "Predictions by the bin of the reference that a feature falls into",
            ["feature", "bin"],
            registry=registry,
        )
        self._observed = {
            feature: {bin_: value_of(observations.labels(feature, bin_)) for bin_ in ratios}
            for feature, ratios in classes.ratios(reference).items()
        }

    def is_due(self, received: float) -> bool:
        """Return whether a request is to be measured, by when its body was complete."""
        return received >= self._due

    def observe(self, pixels: "Tensor", answer: "ModelAnswer") -> Observation:
        """Measure a request, and none for a while."""
        self._due = time.perf_counter() + random.uniform(0, 2 * SAMPLE_INTERVAL)
        likely_class, confidence, logits, projections = answer
        values = self._observe(pixels, self._class_bins[likely_class], confidence, logits, projections)
        for feature, value in zip(FEATURES, values):
            if feature in self._observed:
                self._observed[feature][self._bin(feature, value)].inc(1)
        return values


class _Constants(Collector):
    """What does not change while a model is served, and is not kept in the files of the workers."""

    def __init__(
        self,
        manifest: Manifest,
        ratios: Optional[Dict[str, Dict[str, float]]],
        accuracy: Optional[Accuracy],
        release: str,
    ) -> None:
        self._manifest, self._ratios, self._accuracy, self._release = manifest, ratios, accuracy, release
        self._loaded = time.time()

    def collect(self) -> Iterable[Metric]:
        manifest = self._manifest
        labels = {
            "name": manifest.name,
            "version": manifest.version,
            "architecture": manifest.architecture,
            "sha256": manifest.weights_sha256,
            "release": self._release,
        }
        info = GaugeMetricFamily("model_info", "The model that answers", labels=tuple(labels))
        info.add_metric(list(labels.values()), 1)
        yield info
        yield GaugeMetricFamily("model_loaded_timestamp_seconds", "When the model was loaded", self._loaded)
        if self._accuracy is not None:
            ratio, images = self._accuracy.ratio, self._accuracy.images
            for name, help_text, value in (
                ("model_accuracy_ratio", "Share of right answers to the images that the model was judged by", ratio),
                ("model_accuracy_images", "Images that the model was judged by", images),
            ):
                known = GaugeMetricFamily(name, help_text, labels=("version",))
                known.add_metric([manifest.version], value)
                yield known
        if self._ratios is not None:
            shares = GaugeMetricFamily(
                "feature_reference_ratio",
                "Share of the reference images whose feature falls into the bin",
                labels=("feature", "bin"),
            )
            for feature, ratios in self._ratios.items():
                for bin_, share in ratios.items():
                    shares.add_metric([feature, bin_], share)
            yield shares
