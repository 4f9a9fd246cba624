"""Reduce a dashboard of the SDK (Grafana 10.1's model) to what Grafana 8.0 knows as well.

Newer Grafana migrates such a file when it loads it, by its schemaVersion. Nothing else is needed for both:
panel types and options that 8.0 lacks are refused by the tests, not translated here.
"""

import json
from string import ascii_uppercase
from typing import Any, Dict
from zlib import crc32

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

DATASOURCE = "prometheus"  # both name and uid of the provisioned datasource
SCHEMA_VERSION = 30  # Grafana 8.0's; the object form of `datasource` came with 33

# Fields that the SDK always writes and Grafana 8.0 does not have, or has as the default.
SUPERFLUOUS = {
    "fiscalYearStartMonth", "style", "repeatDirection", "transparent", "transformations", "showLegend",
    "auto", "auto_count", "auto_min", "minVizHeight", "minVizWidth", "valueMode",
}  # fmt: skip


def trimmed(value: Any) -> Any:
    """The value without nulls and superfluous fields, at any depth."""
    if isinstance(value, dict):
        kept = {key: trimmed(item) for key, item in value.items() if item is not None and key not in SUPERFLUOUS}
        # Grafana writes the lowest threshold with a null, and reads it so.
        return {"value": None, **kept} if set(kept) == {"color"} else kept
    return [trimmed(item) for item in value] if isinstance(value, list) else value


def as_json(dashboard: Dashboard) -> Dict[str, Any]:
    board: Dict[str, Any] = trimmed(json.loads(JSONEncoder().encode(dashboard)))
    board["schemaVersion"] = SCHEMA_VERSION
    for annotation in board["annotations"].setdefault("list", []):
        annotation["datasource"] = DATASOURCE
    for variable in board["templating"].setdefault("list", []):
        del variable["id"]
        variable["datasource"] = DATASOURCE
    for number, panel in enumerate(board["panels"], 1):
        # The same for as long as a panel has its title: alerts link to it (`?viewPanel=`).
        panel["id"] = 1000 + crc32(panel["title"].encode()) % 1_000_000 if panel.get("title") else number
        for letter, target in zip(ascii_uppercase, panel.get("targets", [])):
            panel["datasource"] = DATASOURCE
            target["refId"] = letter
    return board
