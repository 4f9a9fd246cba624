"""Everything that is used of prometheus_client beyond its documented interface."""

from typing import Any, Dict, Type

import prometheus_client.values

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
}


def use(value_class: Type[Any]) -> None:
    """Let metrics that are created from now on consist of values of this class."""
    prometheus_client.values.ValueClass = value_class
