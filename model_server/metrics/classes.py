"""Which series the classes of a model have: one each, or where they are many, some together.

A page with some series for each of 1,000 classes would take a worker 50 ms every second.
"""

from typing import Dict, Optional, Sequence

from model_server.model.reference import PREDICTED_CLASS, Reference

OTHER = "(other)"  # the classes without a series of their own; no class is named so
GROUPS = 20  # of classes, in whose shares drift is looked for


class ClassSeries:
    """The names that classes have on the page.

    Attributes:
        labels: class → the label of its predictions: the class itself, or `OTHER`. Those with the largest shares of the
            reference have their own; without a reference the first ones of the model.
        bins: class → its bin of the feature `predicted_class`: the class itself, or where there are many, and it has
            less than a twentieth of the reference, one of 20 groups of neighbours with about equal shares of the rest.
    """

    def __init__(self, classes: Sequence[str], reference: Optional[Reference], limit: int) -> None:
        """Name the series.

        Args:
            classes: of the model, in its order.
            reference: of the model, None if it has none.
            limit: how many series there may be for each metric by class, at least 2.
        """
        self.labels: Dict[str, str] = {name: name for name in classes}
        self.bins: Dict[str, str] = dict(self.labels)
        if len(classes) <= limit:
            return
        shares = dict.fromkeys(classes, 1 / len(classes)) if reference is None else reference.ratios[PREDICTED_CLASS]
        frequent = sorted(classes, key=lambda name: -shares[name])[: limit - 1]
        self.labels = {**dict.fromkeys(classes, OTHER), **{name: name for name in frequent}}
        rare = [name for name in classes if shares[name] < 1 / GROUPS]
        total, below = sum(shares[name] for name in rare) or 1.0, 0.0
        for name in rare:
            middle = (below + shares[name] / 2) / total
            self.bins[name] = f"group {min(int(GROUPS * middle), GROUPS - 1):02}"
            below += shares[name]

    def ratios(self, reference: Reference) -> Dict[str, Dict[str, float]]:
        """Return the shares of the reference by feature and bin, as the page has them."""
        grouped: Dict[str, float] = {}
        for name, share in reference.ratios[PREDICTED_CLASS].items():
            grouped[self.bins[name]] = grouped.get(self.bins[name], 0.0) + share
        return {**reference.ratios, PREDICTED_CLASS: grouped}
