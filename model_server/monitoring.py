"""Metrics that are right with several workers.

prometheus_client keeps each process's metrics in files of its own, and `exposition` adds the files up on a
scrape. By default the files carry the process id, so that every replaced worker leaves files behind for good.
Here they carry the worker's slot (0, 1, ...): a replacement takes the free slot, opens its predecessor's
files and counts on from there. Nothing doubles, vanishes or grows, however many workers come and go, and also
while two masters hand over to each other.
"""

import contextlib
import fcntl
import logging
import math
import os
import random
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Collection, Dict, Iterable, Iterator, Optional, Tuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette_exporter import PrometheusMiddleware

from model_server.bundle import Manifest
from model_server.exposition import CHECK, CONTENT_TYPE, Page
from model_server.metrics_files import FULL, count_as
from model_server.reference import NUMBERS, PREDICTED_CLASS, Reference
from model_server.settings import METRICS_DIR, SettingsError
from model_server.upload import Reason

if TYPE_CHECKING:  # the import of torch takes seconds
    from torch import Tensor

STAGES = ("read", "queue", "decode", "preprocess", "forward")  # in the order of a request
SAMPLE_INTERVAL = 0.15  # seconds, in each worker
APP_NAME = "fastapi"

log = logging.getLogger("gunicorn.error")


class Slot:
    """A worker's place in the metrics, its own as long as it lives.

    Held by a lock that the kernel lets go of when the last process is gone that has the file open: a lost master's
    successor knows by it which slots living workers have.
    """

    def __init__(self, number: int, lock: Optional[int]) -> None:
        self.number = number
        self._lock = lock

    @classmethod
    def claim(cls, metrics_dir: Optional[Path], taken: Collection[int]) -> "Slot":
        """Take the lowest slot that is not one of `taken` and that no other process has."""
        number = -1
        while True:
            number += 1
            if number in taken:
                continue
            try:
                lock = None if metrics_dir is None else _lock(metrics_dir, number)
            except BlockingIOError:
                continue
            except OSError as error:
                log.error("Slot %d of the metrics cannot be locked: %s.", number, error.strerror)
                lock = None
            slot = cls(number, lock)
            slot.release()
            return slot

    def release(self) -> None:
        """Forget what was in progress; counters stay."""
        multiprocess.mark_process_dead(self.number)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Leave the slot to the other processes that have it, if there are any."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _lock(metrics_dir: Path, number: int) -> int:
    lock = os.open(str(metrics_dir / f"{number}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def take_slot(slot: Slot) -> None:
    """Count in the given slot from now on; to be called in a worker, right after the fork."""
    count_as(str(slot.number))


def release_free_slots(metrics_dir: Optional[Path]) -> None:
    """Forget what was in progress in the slots that no living worker has, and what a check that was ended left."""
    for path in [] if metrics_dir is None else sorted(metrics_dir.glob(f"*_{CHECK}*.db")):
        path.unlink()
    for path in [] if metrics_dir is None else sorted(metrics_dir.glob("*.lock")):
        with contextlib.suppress(BlockingIOError):
            slot = Slot(int(path.stem), _lock(path.parent, int(path.stem)))
            slot.release()
            slot.close()


@contextlib.contextmanager
def uncounted(metrics_dir: Optional[Path]) -> Iterator[None]:
    """Let requests of the server to itself be counted where nobody looks."""
    check = f"{CHECK}{os.getpid()}"
    former = count_as(check)
    try:
        yield
    finally:
        count_as(former)
        for path in [] if metrics_dir is None else metrics_dir.glob(f"*_{check}.db"):
            path.unlink()


def check_metrics_dir(metrics_dir: Optional[Path]) -> None:
    """Make sure that the workers can share their metrics.

    Raises:
        SettingsError: the directory is not given, or no file can be written there.
    """
    if metrics_dir is None:
        raise SettingsError(f"{METRICS_DIR} is not set; it names the directory of the workers' shared metrics.")
    try:
        with tempfile.TemporaryFile(dir=str(metrics_dir)):
            pass
    except OSError as error:
        if error.errno in FULL:  # no reason not to serve; the metrics tell it themselves
            return
        problem = f"where no file can be written: {error.strerror}"
        raise SettingsError(f"{METRICS_DIR} is {str(metrics_dir)!r}, {problem}.") from None


class RequestMetrics(PrometheusMiddleware):
    """starlette_exporter's metrics, recorded at a tenth of the cost of its own middleware.

    That one looks labels up anew and matches each request's path to the routes; this one keeps what it has found.
    """

    def __init__(self, app: ASGIApp, paths: Collection[str], registry: CollectorRegistry) -> None:
        """Wrap an app.

        Args:
            app: what answers the requests.
            paths: those of the app's routes, which take no parameters; any other path makes no series.
            registry: where the metrics are shown.
        """
        super().__init__(app, app_name=APP_NAME, prefix=APP_NAME)
        self._paths = paths
        for metric in (self.request_count, self.request_time, self.requests_in_progress):
            registry.register(metric)
        # A child costs more to look up by its labels than to count in.
        self._answered: Dict[Tuple[str, str, int], Tuple[Counter, Histogram]] = {}
        self._in_progress: Dict[str, Gauge] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method, path, status = scope["method"], scope["path"], 500

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        in_progress = self._in_progress.get(method)
        if in_progress is None:
            in_progress = self._in_progress[method] = self.requests_in_progress.labels(method, APP_NAME)
        in_progress.inc()
        begun = time.perf_counter()
        try:
            await self.app(scope, receive, watched_send)
        except BaseException:
            status = 500
            raise
        finally:
            seconds = time.perf_counter() - begun
            in_progress.dec()
            if path in self._paths:
                self._count(method, path, status, seconds)

    def _count(self, method: str, path: str, status: int, seconds: float) -> None:
        children = self._answered.get((method, path, status))
        if children is None:
            labels = (method, path, str(status), APP_NAME)
            children = self.request_count.labels(*labels), self.request_time.labels(*labels)
            self._answered[method, path, status] = children
        count, duration = children
        count.inc()
        duration.observe(seconds)


class Inference:
    """What is measured of one request to the model, to be recorded when it is over.

    Recording all at once costs a third of recording each when it is known: after a decoder or a forward pass
    the processor's caches hold no metrics any more.

    Attributes:
        received: moment of the performance counter, in seconds, when the body had come and been read.
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
        """End a stage, which may be one that ended before; the next one begins."""
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._lap_begun
        self._lap_begun = now

    @property
    def received(self) -> float:
        return self._begun + self.stages["read"]


class ModelMetrics:
    """The metrics of one model.

    Every series is there, as 0, from the start, and found without its labels later.

    Attributes:
        registry: where the metrics belong.
        constants: lines of the page /metrics that never change.
    """

    def __init__(self, manifest: Manifest, reference: Optional[Reference], release: str = "") -> None:
        self.registry = CollectorRegistry()
        self.constants = generate_latest(_Constants(manifest, reference, release))
        predictions = Counter("predictions", "Predictions made, by class", ["class"], registry=self.registry)
        confidence = Histogram(
            "prediction_confidence",
            "Softmax of the likely class, by class",
            ["class"],
            buckets=(0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1),
            registry=self.registry,
        )
        stages = Histogram(
            "inference_stage_duration_seconds",
            "Time that a prediction spends in its stages",
            ["stage"],
            buckets=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1),
            registry=self.registry,
        )
        rejected = Counter(
            "rejected_inputs", "Inputs that no prediction was made for, by reason", ["reason"], registry=self.registry
        )
        self._bytes = Histogram(
            "input_bytes",
            "Size of the image files that came to be decoded",
            buckets=[1000 * 4**k for k in range(8)],
            registry=self.registry,
        )
        self._pixels = Histogram(
            "input_pixels",
            "Width × height of the decoded images",
            buckets=[1000 * 4**k for k in range(9)],
            registry=self.registry,
        )
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._classes = {name: (predictions.labels(name), confidence.labels(name)) for name in manifest.classes}
        self._reasons = {reason: rejected.labels(reason.value) for reason in Reason}
        self._features = None if reference is None else _FeatureMetrics(reference, self.registry)

    def record(self, inference: Inference) -> None:
        """Record a request, however far it came."""
        for stage, seconds in inference.stages.items():
            self._stages[stage].observe(seconds)
        if inference.size is not None:
            self._bytes.observe(inference.size)
        if inference.pixels is not None:
            self._pixels.observe(inference.pixels)

    def reject(self, reason: Reason) -> None:
        self._reasons[reason].inc()

    def predict(self, inference: Inference, pixels: "Tensor", likely_class: str, confidence: float) -> None:
        """Record a prediction: what the model saw, and what it said."""
        if math.isnan(confidence):  # of a broken model; in the histogram's sum it would stay for good
            confidence = 0.0
        count, confidences = self._classes[likely_class]
        count.inc()
        confidences.observe(confidence)
        if self._features is not None:
            self._features.observe(inference.received, pixels, likely_class, confidence)


class _FeatureMetrics:
    """Counts the features of predictions by the bins of the reference.

    To measure a prediction costs 2 % of it. So while predictions come fast, a sample of them is measured: the first
    that is decoded after each of some chance moments, `SAMPLE_INTERVAL` apart on average. Not the first that ends
    after it: large images, which take longer, would be among those more often than they are sent. Nor the first
    that begins to arrive: slow uploads would hardly ever be.
    """

    def __init__(self, reference: Reference, registry: CollectorRegistry) -> None:
        from model_server.features import measure  # noqa: PLC0415 - imports torch

        self._measure = measure
        self._due = 0.0
        self._bin = reference.bin
        observations = Counter(
            "feature_observations",
            "Predictions by the bin of the reference that a feature falls into",
            ["feature", "bin"],
            registry=registry,
        )
        self._observed = {
            (feature, bin_): observations.labels(feature, bin_)
            for feature, ratios in reference.ratios.items()
            for bin_ in ratios
        }

    def observe(self, received: float, pixels: "Tensor", likely_class: str, confidence: float) -> None:
        if received < self._due:
            return
        self._due = time.perf_counter() + random.uniform(0, 2 * SAMPLE_INTERVAL)
        for feature, value in zip(NUMBERS, (*self._measure(pixels), confidence)):
            self._observed[feature, self._bin(feature, value)].inc()
        self._observed[PREDICTED_CLASS, likely_class].inc()


class _Constants(Collector):
    """What never changes while a model is served, and so needs no place in the files of every worker."""

    def __init__(self, manifest: Manifest, reference: Optional[Reference], release: str) -> None:
        self._manifest, self._reference, self._release = manifest, reference, release
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
        if self._reference is not None:
            shares = GaugeMetricFamily(
                "feature_reference_ratio",
                "Share of the reference images whose feature falls into the bin",
                labels=("feature", "bin"),
            )
            for feature, ratios in self._reference.ratios.items():
                for bin_, share in ratios.items():
                    shares.add_metric([feature, bin_], share)
            yield shares


def instrument(app: Starlette, metrics: ModelMetrics, metrics_dir: Optional[Path]) -> None:
    """Serve the metrics at /metrics, and measure the requests to all routes that the app has by now.

    Args:
        app: the finished app.
        metrics: those of its model.
        metrics_dir: where all workers have their files; None: this process is the only one, and has none.
    """
    page = None if metrics_dir is None else Page(metrics_dir)
    if page is not None:
        page.render()  # what this parses, the workers need not

    async def serve(request: Request) -> Response:
        counted = generate_latest(metrics.registry) if page is None else page.render()
        # The next scrape comes over a new connection, which a worker accepts that has nothing else to do;
        # over a kept one it would wait for its worker's predictions.
        headers = {"Content-Type": CONTENT_TYPE, "Connection": "close"}
        return Response(counted + metrics.constants, headers=headers)

    app.add_route("/metrics", serve)
    paths = frozenset(route.path for route in app.routes if isinstance(route, Route))
    app.add_middleware(RequestMetrics, paths=paths, registry=metrics.registry)
