"""The figures that have a bar, and how they are shown."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

RESULTS = Path(__file__).parent / "results.json"
README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- figures of results.json -->\n", "<!-- end of figures -->\n"


@dataclass(frozen=True)
class Bar:
    """A limit that a figure must meet; `better` is "lower" or "higher"."""

    name: str
    bar: float
    better: str
    unit: str

    def judge(self, value: float) -> Dict[str, Any]:
        return {"name": self.name, "value": value, "bar": self.bar, "better": self.better, "unit": self.unit}


BARS = (
    Bar("CPU time of a request, exact, to the lab's", 0.62, "lower", "ratio"),
    Bar("CPU time of a request, fast, to the lab's", 0.5, "lower", "ratio"),
    Bar("CPU time of a request, exact, to a loop without HTTP", 1.3, "lower", "ratio"),
    Bar("CPU time of a request, fast, to a loop without HTTP", 1.3, "lower", "ratio"),
    Bar("throughput at 16 connections, exact, to the lab's", 1.6, "higher", "ratio"),
    Bar("throughput at 16 connections, fast, to the lab's", 1.9, "higher", "ratio"),
    Bar("p99 at 64 connections", 0.3, "lower", "s"),
    Bar("longest to median at 64 connections", 4, "lower", "ratio"),
    Bar("12-megapixel photo, fast, p50, to the lab's", 0.35, "lower", "ratio"),
    Bar("memory of two workers, to the lab's", 0.6, "lower", "ratio"),
    Bar("memory of a further worker", 60, "lower", "MB"),
    Bar("cold start, to the lab's", 1, "lower", "ratio"),
    Bar("Locust users, to the lab's", 2, "higher", "ratio"),
    Bar("CPU time of a request, with metrics to without", 1.03, "lower", "ratio"),
    Bar("scrape under load, p99", 0.01, "lower", "s"),
    Bar("scrape after 100 replaced workers, p99", 0.01, "lower", "s"),
    Bar("scrape after 100 replaced workers, p50, to before", 1.25, "lower", "ratio"),
)


def judge(values: Mapping[str, float], bars: Sequence[Bar] = BARS) -> List[Dict[str, Any]]:
    """Compare measured values with the bars of the same names.

    Raises:
        KeyError: a value is missing.
    """
    return [bar.judge(values[bar.name]) for bar in bars]


def is_met(figure: Mapping[str, Any]) -> bool:
    met: bool = figure["value"] <= figure["bar"] if figure["better"] == "lower" else figure["value"] >= figure["bar"]
    return met


def show(figures: List[Dict[str, Any]]) -> bool:
    """Print a line for each figure, and return whether all bars are met."""
    for figure in figures:
        at = "at most" if figure["better"] == "lower" else "at least"
        verdict = "met" if is_met(figure) else "MISSED"
        print(f"{figure['name']:<53} {figure['value']:8.3g} {figure['unit']:<7} {at} {figure['bar']:<6g} {verdict}")
    return all(map(is_met, figures))


def markdown(figures: List[Dict[str, Any]]) -> str:
    """Return the figures as the table of README.md."""
    rows = ["| figure | value | bar | |", "|---|---|---|---|"]
    for figure in figures:
        unit = "" if figure["unit"] == "ratio" else f" {figure['unit']}"
        at = "at most" if figure["better"] == "lower" else "at least"
        verdict = "met" if is_met(figure) else "**missed**"
        rows.append(f"| {figure['name']} | {figure['value']:.3g}{unit} | {at} {figure['bar']:g}{unit} | {verdict} |")
    return "\n".join(rows) + "\n"


def put_into_readme(text: str, figures: List[Dict[str, Any]]) -> str:
    """Return the text of README.md with a new table between its two markers.

    Raises:
        ValueError: the markers are missing.
    """
    changed, count = re.subn(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: BEGIN + markdown(figures) + END, text, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"README.md has no place for the figures between {BEGIN.strip()} and {END.strip()}.")
    return changed
