"""The fields of `model.yaml` that the tests' bundles have, but for the checksum."""

from typing import Any, Dict

FIELDS: Dict[str, Any] = {
    "name": "fruits",
    "version": "1.0",
    "architecture": "fruit_classifier",
    "classes": ["apple", "grapes", "lemon"],
    "input_size": 150,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
# For what only has to be quick.
SMALL: Dict[str, Any] = {**FIELDS, "input_size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
