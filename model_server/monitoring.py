"""Metrics that are right with several workers.

prometheus_client keeps each process's metrics in files of its own and adds the files up on a scrape.
By default the files carry the process id, so that every replaced worker leaves files behind for good.
Here they carry the worker's slot (0, 1, ...): a replacement takes the free slot, opens its predecessor's
files and counts on from there. Nothing doubles, vanishes or grows, however many workers come and go.
"""

import os
import tempfile
from pathlib import Path
from typing import Optional, Sequence

import prometheus_client.values
from prometheus_client import Counter, multiprocess
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette_exporter import PrometheusMiddleware, handle_metrics

from model_server.settings import METRICS_DIR, SettingsError

_slot = "master"


def _identify() -> str:
    return _slot


if METRICS_DIR in os.environ:  # prometheus_client decides by the same test, at its import
    prometheus_client.values.ValueClass = prometheus_client.values.MultiProcessValue(_identify)  # type: ignore[no-untyped-call]

PREDICTIONS = Counter("predictions", "Predictions made, by class", ["class"])


def take_slot(slot: int) -> None:
    """Count in the given slot from now on; to be called in a worker, right after the fork."""
    global _slot  # noqa: PLW0603 - the identity of this process
    _slot = str(slot)


def release_slot(slot: int) -> None:
    """Forget what was in progress in a slot whose worker is gone; its counters stay."""
    multiprocess.mark_process_dead(slot)  # type: ignore[no-untyped-call]


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
        problem = f"where no file can be written: {error.strerror}"
        raise SettingsError(f"{METRICS_DIR} is {str(metrics_dir)!r}, {problem}.") from None


def instrument(app: Starlette, classes: Sequence[str]) -> None:
    """Measure every request of the app, and serve the metrics of all workers at /metrics."""
    for name in classes:
        PREDICTIONS.labels(name)  # so that each class has a series, of 0, before its first prediction
    app.add_middleware(PrometheusMiddleware, app_name="fastapi", prefix="fastapi", filter_unhandled_paths=True)

    async def metrics(request: Request) -> Response:
        return handle_metrics(request)

    app.add_route("/metrics", metrics)
