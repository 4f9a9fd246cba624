"""The metrics of samples: images that the server keeps, so that people can look at them."""

from enum import Enum

from prometheus_client import CollectorRegistry, Counter


class SampleReason(Enum):
    """Why an image is kept, as the metrics and the folders name it."""

    REJECTED = "rejected"
    UNCERTAIN = "uncertain"
    OUTLYING = "outlying"


class SampleMetrics:
    """Counts samples; all series begin with 0."""

    def __init__(self, registry: CollectorRegistry) -> None:
        kept = Counter("samples_kept", "Images kept to be looked at, by reason", ["reason"], registry=registry)
        self._kept = {reason: kept.labels(reason.value) for reason in SampleReason}
        self._failed = Counter("samples_failed", "Images that could not be kept", registry=registry)

    def keep(self, reason: SampleReason) -> None:
        """Count an image that was kept."""
        self._kept[reason].inc()

    def fail(self) -> None:
        """Count an image that could not be written."""
        self._failed.inc()
