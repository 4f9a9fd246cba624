"""Everything that is used of prometheus_client beyond its documented interface."""

from bisect import bisect_left
from typing import Any, Dict, Type, Union

import prometheus_client.values
from prometheus_client import Counter, Gauge, Histogram

# What is used, and what for. tests/unit/model_server/test_holds.py fails with this when a release has changed it.
HOLDS: Dict[str, str] = {
    "prometheus_client.values.ValueClass": "metrics take the class of their values from here, when they are made",
    "prometheus_client.values.MultiProcessValue(process_identifier)": (
        "the hook for process names; its class defines the interface that metrics.values.Value implements"
    ),
    "prometheus_client.values.MutexValue(typ, metric_name, name, labelnames, labelvalues, help_text, kwargs)": (
        "metrics create their values with these arguments"
    ),
    "prometheus_client.multiprocess.mark_process_dead(pid, path)": (
        "deletes gauge_live*_<slot>.db, what a dead worker had in progress"
    ),
    "prometheus_client.metrics.Counter:self._value": "is counted with, without the checks of `Counter.inc`",
    "prometheus_client.metrics.Gauge:self._value": "is set, without the checks of `Gauge.set`",
    "prometheus_client.metrics.Histogram:self._upper_bounds": "an amount is looked up in them",
    "prometheus_client.metrics.Histogram:self._buckets": "the values of the buckets, which are not cumulated",
    "prometheus_client.metrics.Histogram:self._sum": "the value of the sum",
}


def use(value_class: Type[Any]) -> None:
    """Let metrics that are created from now on consist of values of this class."""
    prometheus_client.values.ValueClass = value_class


def value_of(metric: Union[Counter, Gauge]) -> Any:
    """Return the value of a metric without labels, or with all of them: its `inc` and `set` check nothing."""
    return metric._value


class Observer:
    """A histogram without labels, or with all of them, that neither checks nor tries its buckets one by one."""

    __slots__ = ("_bounds", "_buckets", "_sum")

    def __init__(self, histogram: Histogram) -> None:
        self._bounds, self._buckets, self._sum = histogram._upper_bounds, histogram._buckets, histogram._sum

    def observe(self, amount: float) -> int:
        """Observe a number that is not NaN, and return the number of its bucket."""
        bucket = bisect_left(self._bounds, amount)
        self._buckets[bucket].inc(1)
        self._sum.inc(amount)
        return bucket
