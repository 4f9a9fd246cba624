"""The metrics of feedback: what predictions should have been, as clients say later."""

import math
from bisect import bisect_left
from enum import Enum
from typing import Dict

from prometheus_client import CollectorRegistry, Counter

from model_server.metrics.predictions import CONFIDENCES

BINS = tuple(str(confidence) for confidence in CONFIDENCES)  # as the label `le` of `prediction_confidence`
MAX_PAIRS = 2500  # of a class and its label, in each process: further ones count as OTHER
OTHER = "other"


class FeedbackReason(Enum):
    """Why feedback is rejected, as the metrics name it."""

    MALFORMED = "malformed"
    FORGED = "forged"
    EXPIRED = "expired"
    REPLAYED = "replayed"
    UNKNOWN_LABEL = "unknown_label"


def confidence_bin(confidence: float) -> int:
    """Return the number of the bin that a confidence falls into; that of a broken model, NaN, is the first one."""
    return 0 if math.isnan(confidence) else min(bisect_left(CONFIDENCES, confidence), len(BINS) - 1)


class FeedbackMetrics:
    """Counts feedback by the version of the model that had predicted."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the metrics."""
        self._labels = Counter(
            "feedback",
            "Predictions whose true class a client has told, by version of the model, predicted and true class",
            ["version", "class", "label"],
            registry=registry,
        )
        self._confidences = Counter(
            "feedback_by_confidence",
            "Predictions whose true class a client has told, by the upper bound of their confidence",
            ["version", "bin", "correct"],
            registry=registry,
        )
        rejected = Counter(
            "rejected_feedback", "Feedback that was not counted, by reason", ["reason"], registry=registry
        )
        self._reasons = {reason: rejected.labels(reason.value) for reason in FeedbackReason}
        self._pairs: Dict[object, Counter] = {}

    def count(self, version: str, predicted: str, label: str, bin_: int) -> None:
        """Count the true class of a prediction."""
        self._confidences.labels(version, BINS[bin_], str(predicted == label).lower()).inc()
        pair = (version, predicted, label)
        if pair not in self._pairs and len(self._pairs) >= MAX_PAIRS:
            pair = (version, OTHER, OTHER)
        if pair not in self._pairs:
            self._pairs[pair] = self._labels.labels(*pair)
        self._pairs[pair].inc()

    def reject(self, reason: FeedbackReason) -> None:
        """Count feedback that is not counted otherwise."""
        self._reasons[reason].inc()
