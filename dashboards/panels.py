"""The kinds of queries and panels that the dashboards are made of.

A query is a pair: PromQL of Prometheus 2.15, and the legend. Panels flow from left to right as in a text;
`.span()` is a width in Grafana's 24 columns, `.height()` counts lines of about 30 pixels.
"""

from typing import Dict, Iterable, Optional, Sequence, Tuple, TypeVar, Union

from grafana_foundation_sdk.builders import bargauge, common, gauge, piechart, prometheus, stat, text, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.piechart import PieChartLabels, PieChartLegendValues, PieChartType
from grafana_foundation_sdk.models.text import TextMode

Query = Tuple[str, str]
Limits = Sequence[Tuple[Optional[float], str]]  # from this value on, this colour; the first value is None
PanelBuilder = TypeVar("PanelBuilder", bargauge.Panel, gauge.Panel, piechart.Panel, stat.Panel, timeseries.Panel)
Coloured = TypeVar("Coloured", bargauge.Panel, timeseries.Panel)
PLAIN: Limits = ((None, "blue"),)
# An axis reaches at least this far, by its unit: Grafana's own for a flat 0 ends at 100.
SOFT_MAXIMA = {"Bps": 1e4, "bytes": 1e6, "percentunit": 0.1, "reqps": 1, "s": 0.01, "short": 1}
COUNT_SOFT_MAXIMUM = 4
# In pixels. Grafana's automatic size makes legends tiny and breaks long values into two lines.
TEXT, TITLE = 22, 13

TAG = "model-monitoring"
# The dashboard's refresh. The datasource gives the least step of panels: this, or a longer scrape interval, so that
# `$__rate_interval` is 20 s and four scrapes at the least.
STEP = "5s"
# Watchdog always fires.
FIRING = 'ALERTS{alertstate="firing",alertname!="Watchdog"}'
# The dashboards' `instance` is a host; node_exporter and model server of one host differ in their ports.
SELECTED = 'instance=~"$instance:.*"'


def metric(name: str, *matchers: str) -> str:
    return f"{name}{{{','.join((SELECTED, *matchers))}}}"


def rate(name: str, *matchers: str, window: str = "$__rate_interval") -> str:
    return f"rate({metric(name, *matchers)}[{window}])"


def quantiles(
    histogram: str, *matchers: str, by: Sequence[float] = (0.5, 0.95, 0.99), label: str = ""
) -> Sequence[Query]:
    """Quantiles over all selected servers, for each value of the label if there is one.

    Without observations there is no point: the comparison drops NaN.
    """
    buckets = f"sum by ({', '.join(filter(None, ('le', label)))}) ({rate(histogram + '_bucket', *matchers)})"
    prefix = f"{{{{{label}}}}} " if label else ""
    return [(f"histogram_quantile({q}, {buckets}) >= 0", f"{prefix}p{q * 100:.0f}") for q in by]


def mean(histogram: str, label: str) -> Query:
    """The mean observation for each value of the label; without observations there is no point."""
    total, count = (f"sum by ({label}) ({rate(f'{histogram}_{what}')})" for what in ("sum", "count"))
    return f"{total} / {count} >= 0", f"{{{{{label}}}}}"


def _thresholds(limits: Limits) -> builders.ThresholdsConfig:
    steps = [model.Threshold(value=value, color=colour) for value, colour in limits]
    return builders.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False)


def _colours(mode: model.FieldColorModeId) -> builders.FieldColor:
    return builders.FieldColor().mode(mode)


def _ranged(queries: Sequence[Query]) -> Sequence[prometheus.Dataquery]:
    return [prometheus.Dataquery().expr(expr).legend_format(legend).range() for expr, legend in queries]


def _instant(queries: Sequence[Query]) -> Sequence[prometheus.Dataquery]:
    return [prometheus.Dataquery().expr(expr).legend_format(legend).instant() for expr, legend in queries]


def _panel(
    panel: PanelBuilder, title: str, unit: str, description: str, targets: Sequence[prometheus.Dataquery]
) -> PanelBuilder:
    panel.title(title).description(description).unit(unit).height(8)
    for target in targets:
        panel.with_target(target)
    return panel


def series(
    title: str, unit: str, description: str, *queries: Query, stacked: bool = False, limits: Limits = ()
) -> timeseries.Panel:
    """Lines over time, from 0, filled where they are stacked; the limits are drawn as lines across."""
    stacking = options.StackingMode.NORMAL if stacked else options.StackingMode.NONE
    legend = (
        common.VizLegendOptions()
        .display_mode(options.LegendDisplayMode.LIST)
        .placement(options.LegendPlacement.BOTTOM)
        .calcs([])
    )
    panel = (
        _panel(timeseries.Panel(), title, unit, description, _ranged(queries))
        .color_scheme(_colours(model.FieldColorModeId.PALETTE_CLASSIC))
        .draw_style(options.GraphDrawStyle.LINE)
        .line_width(1)
        .fill_opacity(30 if stacked else 0)
        .show_points(options.VisibilityMode.NEVER)
        .stacking(common.StackingConfig().group("A").mode(stacking))
        .min(0)
        .axis_soft_max(SOFT_MAXIMA[unit])
        .legend(legend)
        .tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI))
    )
    if limits:
        style = common.GraphThresholdsStyleConfig().mode(options.GraphTresholdsStyleMode.LINE)
        panel.thresholds(_thresholds(limits)).thresholds_style(style)
    return panel


def counts(title: str, description: str, *queries: Query) -> timeseries.Panel:
    """Lines over time of whole numbers."""
    return series(title, "short", description, *queries).axis_soft_max(COUNT_SOFT_MAXIMUM).decimals(0)


def _fixed(colour: str) -> model.DynamicConfigValue:
    return model.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})


def dashed(panel: timeseries.Panel, regex: str, colour: str) -> timeseries.Panel:
    """The panel with lines of one legend dashed, in this colour: what the others are compared with."""
    style = model.DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [10, 10]})
    return panel.override_by_regexp(regex, [_fixed(colour), style])


def coloured(panel: Coloured, colours: Dict[str, str]) -> Coloured:
    """The panel with fixed colours, by regular expression on the legend."""
    for regex, colour in colours.items():
        panel.override_by_regexp(regex, [_fixed(colour)])
    return panel


def number(
    title: str, unit: str, description: str, *queries: Query, limits: Limits = PLAIN, named: bool = False
) -> stat.Panel:
    """The current value or values, large; a single one is without its legend, unless it is to be named."""
    return (
        _panel(stat.Panel(), title, unit, description, _instant(queries))
        .height(4)
        .thresholds(_thresholds(limits))
        .reduce_options(_last())
        .color_mode(options.BigValueColorMode.VALUE)
        .graph_mode(options.BigValueGraphMode.NONE)
        .justify_mode(options.BigValueJustifyMode.AUTO)
        .text_mode(options.BigValueTextMode.VALUE_AND_NAME if named else options.BigValueTextMode.AUTO)
        .text(common.VizTextDisplayOptions().value_size(TEXT).title_size(TITLE))
        .orientation(options.VizOrientation.AUTO)
    )


def share(title: str, description: str, *queries: Query, limits: Limits) -> gauge.Panel:
    """A share between 0 and 1 as a gauge in percent."""
    return (
        _panel(gauge.Panel(), title, "percentunit", description, _instant(queries))
        .min(0)
        .max(1)
        .thresholds(_thresholds(limits))
        .reduce_options(_last())
        .orientation(options.VizOrientation.AUTO)
        .show_threshold_labels(False)
        .show_threshold_markers(True)
    )


def bars(
    title: str, unit: str, description: str, *queries: Query, limits: Limits = PLAIN, sorted_by_labels: bool = False
) -> bargauge.Panel:
    """The current values as horizontal bars, one for each series.

    Prometheus sorts series by their labels in the answer to a range query only.
    """
    targets = _ranged(queries) if sorted_by_labels else _instant(queries)
    return (
        _panel(bargauge.Panel(), title, unit, description, targets)
        .min(0)
        .thresholds(_thresholds(limits))
        .reduce_options(_last())
        .display_mode(options.BarGaugeDisplayMode.BASIC)
        .orientation(options.VizOrientation.HORIZONTAL)
        .show_unfilled(True)
    )


def pie(title: str, unit: str, description: str, *queries: Query) -> piechart.Panel:
    """How a whole is divided, one slice for each series."""
    legend = (
        piechart.PieChartLegendOptions()
        .display_mode(options.LegendDisplayMode.LIST)
        .placement(options.LegendPlacement.BOTTOM)
        .values([PieChartLegendValues.PERCENT])
    )
    return (
        _panel(piechart.Panel(), title, unit, description, _instant(queries))
        .color_scheme(_colours(model.FieldColorModeId.PALETTE_CLASSIC))
        .reduce_options(_last())
        .pie_type(PieChartType.DONUT)
        .display_labels([PieChartLabels.PERCENT])
        .legend(legend)
    )


def note(sentences: str) -> text.Panel:
    """One paragraph, in Markdown, for a whole row: what to look at first. The rest is behind each panel's ⓘ."""
    return text.Panel().mode(TextMode.MARKDOWN).content(sentences).span(24).height(2)


class Marks(model.AnnotationQuery, Builder[model.AnnotationQuery]):
    """Lines through all graphs of a dashboard, at the times (in ms) that are the query's values.

    The SDK lacks the fields that are Prometheus' own; Grafana 12 still takes them from where 8.0 does.
    """

    def __init__(self, name: str, text: str, promql: str, colour: str) -> None:
        super().__init__(name=name, icon_color=colour, expr=promql)
        self.text = text

    def to_json(self) -> Dict[str, object]:
        own = {"step": STEP, "titleFormat": self.name, "textFormat": self.text, "useValueForTime": True}
        return {**super().to_json(), **own}

    def build(self) -> model.AnnotationQuery:
        return self


def board(uid: str, title: str, description: str) -> builders.Dashboard:
    """An empty dashboard, with links to the others."""
    others = builders.DashboardLink("Dashboards").type(model.DashboardLinkType.DASHBOARDS).tags([TAG]).keep_time(True)
    return (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .link(others)
        .timezone("browser")
        .refresh("5s")
        .time("now-5m", "now")
    )


Panel = Union[bargauge.Panel, gauge.Panel, piechart.Panel, stat.Panel, text.Panel, timeseries.Panel]


def add_row(dashboard: builders.Dashboard, title: str, panels: Iterable[Panel]) -> None:
    dashboard.with_row(builders.Row(title))
    for panel in panels:
        dashboard.with_panel(panel)
