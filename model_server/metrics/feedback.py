"""The metrics of feedback: what predictions should have been, as clients say later."""

from enum import Enum
from itertools import product
from typing import Dict

from prometheus_client import CollectorRegistry, Counter

from model_server.metrics.classes import OTHER, ClassSeries
from model_server.model.accuracy import CONFIDENCE_BINS
from model_server.model.bundle import Manifest

MAX_PAIRS = 2500  # of a class and its label, in each process: further ones count as OTHER
FAMILIES = frozenset({"feedback", "feedback_by_confidence", "rejected_feedback"})
FEW_CLASSES = 10  # of which each pair is there from the start


class FeedbackReason(Enum):
    """Why feedback is rejected, as the metrics name it."""

    MALFORMED = "malformed"
    FORGED = "forged"
    EXPIRED = "expired"
    REPLAYED = "replayed"
    UNKNOWN_LABEL = "unknown_label"


class FeedbackMetrics:
    """Counts feedback by the version of the model that had predicted."""

    def __init__(self, registry: CollectorRegistry, manifest: Manifest, classes: ClassSeries) -> None:
        """Register the metrics; those of this model begin with 0, so that the first feedback is an increase."""
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
        self._named = classes.labels
        for name, correct in product(CONFIDENCE_BINS, ("true", "false")):
            self._confidences.labels(manifest.version, name, correct)
        if len(manifest.classes) <= FEW_CLASSES:
            for predicted, label in product(manifest.classes, repeat=2):
                pair = (manifest.version, predicted, label)
                self._pairs[pair] = self._labels.labels(*pair)

    def count(self, version: str, predicted: str, label: str, bin_: int) -> None:
        """Count the true class of a prediction."""
        self._confidences.labels(version, CONFIDENCE_BINS[bin_], str(predicted == label).lower()).inc()
        # A former model's class has its own series.
        pair = (version, self._named.get(predicted, predicted), self._named.get(label, label))
        if pair not in self._pairs and len(self._pairs) >= MAX_PAIRS:
            pair = (version, OTHER, OTHER)
        if pair not in self._pairs:
            self._pairs[pair] = self._labels.labels(*pair)
        self._pairs[pair].inc()

    def reject(self, reason: FeedbackReason) -> None:
        """Count feedback that is not counted otherwise."""
        self._reasons[reason].inc()
