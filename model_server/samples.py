"""Which images the server keeps so that people can look at them: rejected, uncertain and outlying ones.

A request costs a comparison or two. An image that is kept is stripped of its metadata and written by another thread,
one at a time, and at most one each second for each reason in each worker: those between are left out.
"""

import asyncio
import contextlib
import math
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any, Dict, NamedTuple, Optional, Sequence

from fastapi import Request

from model_server.metrics.journal import LimitedLog
from model_server.metrics.predictions import Reason
from model_server.metrics.samples import SampleMetrics, SampleReason
from model_server.model.bundle import Manifest
from model_server.model.image_files import ImageTooLargeError
from model_server.model.metadata import orientation_of, strip_metadata
from model_server.model.reference import Observation, Reference
from model_server.server.ring import Ring
from model_server.upload import RejectedInputError

INTERVAL = 1.0  # seconds, for each reason in each worker
# Where there is an image to look at; others are refused for the request's form, size or rate.
LOOKED_AT = {Reason.UNDECODABLE, Reason.IMAGE_TOO_LARGE, Reason.UNSUPPORTED_MEDIA_TYPE}


class Answered(NamedTuple):
    """An image that was answered, and what the model said of it; `prediction_id` is for /feedback."""

    image: bytes
    request: Request
    prediction_id: Optional[str]
    likely_class: str
    confidence: float


class Samples:
    """Decides in a worker which images are kept; whatever becomes of these, no request notices."""

    def __init__(
        self,
        ring: Ring,
        below_confidence: float,
        manifest: Manifest,
        reference: Optional[Reference],
        metrics: SampleMetrics,
    ) -> None:
        """Keep images in a ring.

        Args:
            ring: where.
            below_confidence: of an image that is uncertain, 0 to 1.
            manifest: of the model.
            reference: by which outlying images are found; None: none are.
            metrics: that count the samples.
        """
        self._ring, self._below, self._manifest, self._reference = ring, below_confidence, manifest, reference
        self._metrics = metrics
        self._due = dict.fromkeys(SampleReason, 0.0)
        self._writer = ThreadPoolExecutor(1)  # its thread begins with the first sample, after the fork
        self._is_writing, self._is_failing = False, False
        self._failures = LimitedLog("times", lines=1)

    def judge(self, answered: Answered, observation: Observation) -> None:
        """Keep the image if it is outlying or uncertain; without an observation, outliers are not looked for."""
        outlying = self._reference.outlying(observation) if observation and self._reference is not None else []
        reasons = [SampleReason.OUTLYING] if outlying else []
        if not answered.confidence >= self._below:  # also that of a broken model, NaN
            reasons.append(SampleReason.UNCERTAIN)
        if not reasons:
            return
        told = {
            "prediction_id": answered.prediction_id,
            "request_id": _id_of(answered.request),
            "class": answered.likely_class,
            "confidence": None if math.isnan(answered.confidence) else answered.confidence,
            "outlying": outlying,
        }
        self._keep(reasons, answered.image, told)

    def reject(self, image: bytes, request: Request, error: RejectedInputError) -> None:
        """Keep an image that was refused, if it is one."""
        if error.reason in LOOKED_AT:
            told = {"request_id": _id_of(request), "rejected": error.reason.value, "error": error.nameless}
            self._keep([SampleReason.REJECTED], image, told)

    def _keep(self, reasons: Sequence[SampleReason], image: bytes, told: Dict[str, Any]) -> None:
        """Keep an image for the first of its reasons that is due, unless it is too large."""
        if len(image) > self._ring.largest:  # a stranger could have the disk write all the time
            return
        now = time.monotonic()
        reason = next((reason for reason in reasons if now >= self._due[reason]), None)
        if reason is None or self._is_writing:
            return
        self._due[reason], self._is_writing = now + INTERVAL, True
        self._writer.submit(self._write, asyncio.get_running_loop(), reason, image, told)

    def _write(self, loop: asyncio.AbstractEventLoop, reason: SampleReason, image: bytes, told: Dict[str, Any]) -> None:
        error: Optional[Exception] = None
        is_kept = False
        try:
            is_kept = self._strip_and_keep(reason, image, told)
        except ImageTooLargeError:
            pass
        except Exception as failure:  # a full disk, or an image that a decoder cannot stand
            error = failure
        self._is_writing = False
        with contextlib.suppress(RuntimeError):  # the server has stopped meanwhile
            loop.call_soon_threadsafe(self._count, reason, is_kept, error)  # metrics belong to the thread of the loop

    def _strip_and_keep(self, reason: SampleReason, image: bytes, told: Dict[str, Any]) -> bool:
        content, suffix = strip_metadata(image)
        answer = {
            "reason": reason.value,
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "model": {"name": self._manifest.name, "version": self._manifest.version},
            **told,
        }
        # What the model saw was turned, and the file does not say it any more; of a refused image it saw nothing.
        if self._manifest.exif_orientation and reason is not SampleReason.REJECTED:
            answer["orientation"] = orientation_of(image)
        return self._ring.keep(reason, content, suffix, answer)

    def _count(self, reason: SampleReason, is_kept: bool, error: Optional[Exception]) -> None:
        if is_kept:
            self._metrics.keep(reason)
            self._is_failing = False
        elif error is not None:
            self._metrics.fail()
            if not self._is_failing:
                self._failures.add(f"An image could not be kept as a sample: {error}. Requests do not notice.")
            self._is_failing = True


def _id_of(request: Request) -> Optional[str]:
    return request.scope.get("request_id")  # set by the server
