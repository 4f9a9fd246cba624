"""What a dashboard asks of Prometheus: every panel's and annotation's queries as Grafana would send them.

The tests run them, against a Prometheus under load too:

    for problem in unanswered(board, query): ...

where `query` takes PromQL and returns the `result` list of `/api/v1/query`.
"""

import math
import re
from typing import Any, Callable, Dict, Iterator, List, NamedTuple

Query = Callable[[str], List[Dict[str, Any]]]

ANY = ".*"
ALL_HOSTS = ANY
SPAN = "5m"  # the dashboards' time range
STEP = "5s"
# What nothing answers while there is no shadow, and while no client has sent a label.
ONLY_SOMETIMES = ("shadow_agreement_ratio", "feedback")
BUILT_IN = {"__rate_interval": "20s", "__interval": STEP, "__range": SPAN, "__from": "0"}


class Question(NamedTuple):
    panel: str
    promql: str
    over_time: bool  # a series of points rather than the current value


def substituted(promql: str, variables: Dict[str, str]) -> str:
    """The query with `$name` and `${name}` replaced.

    Raises:
        KeyError: a variable that is neither the dashboard's nor Grafana's.
    """
    # A `$1` is none: it is a group of a `label_replace`.
    return re.sub(r"\$(?:\{(\w+)\}|([a-z_]\w*))", lambda name: variables[name[1] or name[2]], promql)


def questions(board: Dict[str, Any], host: str = ALL_HOSTS) -> Iterator[Question]:
    chosen = {variable["name"]: ANY for variable in board["templating"]["list"]}
    variables = {**BUILT_IN, **chosen, "instance": host}
    for annotation in board["annotations"]["list"]:
        yield Question(annotation["name"], substituted(annotation["expr"], variables), over_time=True)
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            name = f"{panel['title']} ({target['legendFormat']})"
            yield Question(name, substituted(target["expr"], variables), not target.get("instant", False))


def unanswered(board: Dict[str, Any], query: Query, host: str = ALL_HOSTS) -> List[str]:
    """The questions that have no data: no series at all, or nothing in them that is a number."""
    found = []
    for question in questions(board, host):
        if any(name in question.promql for name in ONLY_SOMETIMES):
            continue
        result = query(f"({question.promql})[{SPAN}:{STEP}]" if question.over_time else question.promql)
        samples = [sample for series in result for sample in series.get("values") or [series["value"]]]
        if not any(math.isfinite(float(value)) for _, value in samples):
            found.append(f"{question.panel}: no data for {question.promql}")
    return found
