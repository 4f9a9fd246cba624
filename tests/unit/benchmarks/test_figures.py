import json

import pytest

from benchmarks.figures import BARS, README, RESULTS, is_met, judge, markdown, put_into_readme


def test_a_bar_is_met_on_its_side_and_by_the_value_itself() -> None:
    values = {bar.name: bar.bar for bar in BARS}
    assert all(map(is_met, judge(values)))
    below = [is_met(figure) for figure in judge({name: value * 0.99 for name, value in values.items()})]
    assert below == [bar.better == "lower" for bar in BARS]
    above = [is_met(figure) for figure in judge({name: value * 1.01 for name, value in values.items()})]
    assert above == [bar.better == "higher" for bar in BARS]


def test_results_and_table_are_from_one_run_and_have_every_bar() -> None:
    figures = json.loads(RESULTS.read_text(encoding="utf-8"))["figures"]
    assert figures == judge({figure["name"]: figure["value"] for figure in figures})
    assert markdown(figures) in README.read_text(encoding="utf-8")


def test_a_new_table_replaces_the_old_one() -> None:
    text = README.read_text(encoding="utf-8")
    figures = judge({bar.name: 0.125 for bar in BARS})
    once = put_into_readme(text, figures)
    assert markdown(figures) in once
    assert put_into_readme(once, figures) == once
    with pytest.raises(ValueError, match="no place for the figures"):
        put_into_readme("# Benchmarks\n", figures)
