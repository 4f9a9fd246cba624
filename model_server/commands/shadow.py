"""`model-server shadow`: the next model sees copies of requests beside the server that answers them."""

import argparse
import contextlib
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from model_server.commands import CommandError
from model_server.commands.classifier import load_classifier
from model_server.metrics.classes import ClassSeries
from model_server.metrics.journal import LimitedLog
from model_server.metrics.shadow import STAGES, ShadowMetrics, counted
from model_server.metrics.slots import check_metrics_dir
from model_server.metrics.values import restore_lost_files
from model_server.model.bundle import read_bundle
from model_server.model.preprocessing import decoding_of, load, open_image
from model_server.server._gunicorn import tell_ready
from model_server.server.shadow import Copied
from model_server.settings import Settings, read_settings


def add_shadow(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `model-server shadow` to the commands."""
    parser = commands.add_parser(
        "shadow",
        help="let the next model see copies of requests; playbooks/shadow.yml runs it",
        description="Load a bundle beside the running server, with its settings (MODEL_SERVER_...). It sees copies of "
        "a share of the requests and answers nobody. /metrics of the server shows how often both models agree.",
    )
    parser.set_defaults(run=shadow, prefix="model server: shadow")
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="the next bundle")
    parser.add_argument(
        "--share", type=_percent, required=True, metavar="PERCENT", help="of the requests that it sees, above 0 to 100"
    )


def _percent(text: str) -> float:
    with contextlib.suppress(ValueError):
        percent = float(text)
        if 0 < percent <= 100:
            return percent
    raise argparse.ArgumentTypeError(f"{text} is no percentage above 0 to 100")


def shadow(options: argparse.Namespace) -> None:
    """Compare until SIGTERM.

    Raises:
        BundleError, CommandError, SettingsError: there is no shadow.
    """

    def stop(signum: int, frame: Any) -> NoReturn:
        sys.exit()

    settings = read_settings()
    if settings.runtime_dir is None:
        raise CommandError("MODEL_SERVER_RUNTIME_DIR is not set; it names the directory of the service.")
    metrics_dir = check_metrics_dir(settings.metrics_dir)
    classifier = load_classifier(read_bundle(options.bundle))
    signal.signal(signal.SIGTERM, stop)
    with counted(metrics_dir):
        judge = Judge(classifier, settings)
        try:
            copied = Copied(settings.runtime_dir, options.share / 100)
        except OSError as error:
            raise CommandError(f"{settings.runtime_dir} cannot have the shadow's socket: {error.strerror}.") from error
        tell_ready()
        try:
            while True:
                copied.take(judge)
                restore_lost_files()
        finally:
            copied.close()


class Judge:
    """Lets a model see an image, and records what it says beside the model that serves.

    Attributes:
        metrics: what it has recorded.
    """

    def __init__(self, classifier: Any, settings: Settings) -> None:
        self._classifier = classifier
        self._max_pixels = settings.max_image_pixels
        self._decoding = decoding_of(classifier.manifest, settings.decoding)
        classes = ClassSeries(classifier.manifest.classes, classifier.reference, settings.class_series)
        self.metrics = ShadowMetrics(classifier.manifest, classes)
        self._failures = LimitedLog("images failed", lines=1)

    def __call__(self, image: bytes, served_class: str) -> None:
        # Processor time: this process waits for the server's workers, and its own time would tell of them.
        ends = [time.thread_time()]
        try:
            decoded = load(open_image(image, self._max_pixels), self._decoding)
            ends.append(time.thread_time())
            pixels = self._classifier.preprocess(decoded)
            ends.append(time.thread_time())
            ((likely_class, confidence, *_),) = self._classifier.classify_batch([pixels])
            ends.append(time.thread_time())
        except Exception as error:  # of the model that is tried; it must not end the comparison
            self.metrics.fail()
            self._failures.add(f"The shadow could say nothing of an image: {error!r}")
            return
        stages = {stage: end - begin for stage, begin, end in zip(STAGES, ends, ends[1:])}
        self.metrics.predict(likely_class, confidence, served_class, stages)
