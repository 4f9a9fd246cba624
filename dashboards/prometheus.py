"""The dashboard of the monitoring itself: what Prometheus scrapes, its rules and alerts, and what it needs for them."""

from typing import Iterable

from grafana_foundation_sdk.builders import dashboard as builders

from dashboards.panels import Panel, Query, add_row, board, note, number, series

FIRING = 'ALERTS{alertstate="firing"}'
# The shortest, where jobs have intervals of their own.
INTERVAL = 'min(prometheus_target_interval_length_seconds{quantile="0.5"})'

NONE_IS_GOOD = ((None, "green"), (1, "red"))
ONE_IS_GOOD = ((None, "red"), (1, "green"))
OF_THE_INTERVAL = ((None, "green"), (0.5, "orange"), (1, "red"))


def dashboard() -> builders.Dashboard:
    made = board(
        "prometheus", "Prometheus Dashboard", "Whether the monitoring itself works: scrapes, rules, alerts and storage."
    )
    for panel in top():
        made.with_panel(panel)
    add_row(made, "Scrapes", scrapes())
    add_row(made, "Rules, Alerts and Notifications", alerting())
    add_row(made, "Storage, Queries and Process", process())
    return made


def or_zero(promql: str, legend: str) -> Query:
    """0 where there is no series: no alert fires, or nothing is there that could send one."""
    return f"{promql} or vector(0)", legend


def a_minute(counter: str) -> str:
    return f"sum(increase({counter}[1m]))"


def by_group(promql: str) -> str:
    """The query with the name of the rule group as `group`; Prometheus puts the file's path before it."""
    return f'sum by (group) (label_replace({promql}, "group", "$1", "rule_group", ".*;(.*)"))'


def top() -> Iterable[Panel]:
    yield (
        number(
            "Targets up",
            "none",
            "Targets that answered their last scrape, of all that are configured.",
            ("sum(up)", "up"),
            ("count(up)", "of"),
        )
        .span(5)
        .height(3)
    )
    yield (
        number(
            "Alerts firing",
            "none",
            "Alerts that fire now.",
            or_zero(f"count({FIRING})", "firing"),
            limits=NONE_IS_GOOD,
        )
        .span(4)
        .height(3)
    )
    yield (
        number(
            "Alertmanagers",
            "none",
            "Alertmanagers that Prometheus sends its alerts to. With none, no alert reaches a person.",
            ("min(prometheus_notifications_alertmanagers_discovered)", "Alertmanagers"),
            limits=((None, "orange"), (1, "green")),
        )
        .span(4)
        .height(3)
    )
    yield (
        number(
            "Configuration in effect",
            "bool_yes_no",
            "Whether the last reload of configuration and rules worked. If not, those from before it still hold.",
            ("min(prometheus_config_last_reload_successful)", "in effect"),
            limits=ONE_IS_GOOD,
        )
        .span(5)
        .height(3)
    )
    yield (
        number(
            "Running since",
            "dateTimeAsIso",
            "When Prometheus was started.",
            ('1000 * max(process_start_time_seconds{job="prometheus"})', "since"),
        )
        .span(6)
        .height(3)
    )


def scrapes() -> Iterable[Panel]:
    yield series(
        "Targets up by job",
        "short",
        "Targets of each job that answered their last scrape.",
        ("sum by (job) (up)", "{{job}}"),
    ).span(8)
    yield note(
        "**Targets up by job**",
        "A line that falls is a target that does not answer: the service is down, or the network is. "
        "A job that is missing has no targets.",
    ).span(4)
    yield series(
        "Samples per scrape by job",
        "short",
        "Samples that all targets of a job give in one scrape.",
        ("sum by (job) (scrape_samples_scraped)", "{{job}}"),
    ).span(8)
    yield note(
        "**Samples per scrape by job**",
        "It should be level. A line that climbs and climbs is a label with ever new values, "
        "and will fill memory and disk.",
    ).span(4)
    yield series(
        "Scrape duration by job",
        "s",
        "How long the slowest target of each job takes to answer a scrape.",
        ("max by (job) (scrape_duration_seconds)", "{{job}}"),
    ).span(6)
    yield series(
        "Share of the interval taken",
        "percentunit",
        "Duration of the slowest scrape of each job, of the interval between two scrapes.",
        (f"max by (job) (scrape_duration_seconds) / scalar({INTERVAL})", "{{job}}"),
        limits=OF_THE_INTERVAL,
    ).span(6)
    yield series(
        "Interval between scrapes",
        "s",
        "Time that really passes between two scrapes of a target, as quantiles of the last minutes.",
        (
            "max by (interval, quantile) (prometheus_target_interval_length_seconds)",
            "{{interval}} quantile {{quantile}}",
        ),
    ).span(6)
    yield note(
        "**Scrapes against their interval**",
        "A scrape must be over before the next one is due. At **100 %** (red) it is given up, and the target counts "
        "as down; from **50 %** on (orange) there is little left for a busy moment.",
        "The quantiles of the interval should lie on one another. Where they spread, Prometheus itself has too little "
        "processor time, and rates get rough.",
    ).span(6)


def alerting() -> Iterable[Panel]:
    yield series(
        "Alerts firing by name",
        "short",
        "Alerts that fire, by name; none is a line at 0.",
        (
            f'count by (alertname) ({FIRING}) or on () label_replace(vector(0), "alertname", "none", "", "")',
            "{{alertname}}",
        ),
        stacked=True,
    ).span(8)
    yield note(
        "**Alerts firing by name**",
        "Each name has a section in the runbooks: what it means, how to look, what to do. "
        "Pending alerts do not count yet.",
    ).span(4)
    yield series(
        "Rule evaluation by group",
        "s",
        "How long the last evaluation of each group of rules took.",
        (by_group("prometheus_rule_group_last_duration_seconds"), "{{group}}"),
    ).span(8)
    yield note(
        "**Rule evaluation by group**",
        "A group must be done before it is due again. What it takes longer is missed, and its alerts come late.",
    ).span(4)
    yield series(
        "Failed rule evaluations",
        "short",
        "Evaluations in the last minute that failed, by group, and evaluations that were missed. All should be 0. "
        "Before Prometheus 2.18 failures have no group, and are one line without a name.",
        (by_group("increase(prometheus_rule_evaluation_failures_total[1m])"), "{{group}} failed"),
        (a_minute("prometheus_rule_group_iterations_missed_total"), "missed"),
    ).span(8)
    yield series(
        "Notifications to Alertmanager",
        "short",
        "Alerts of the last minute that Prometheus sent, or could not send. While one fires, it is sent repeatedly.",
        or_zero(a_minute("prometheus_notifications_sent_total"), "sent"),
        or_zero(a_minute("prometheus_notifications_errors_total"), "failed"),
        or_zero(a_minute("prometheus_notifications_dropped_total"), "dropped"),
    ).span(8)
    yield series(
        "Alertmanager",
        "short",
        "Alerts that Alertmanager holds, and its notifications of the last minute. All 0 where none is scraped. "
        "Before Alertmanager 0.25 alerts that are over count for some minutes more.",
        or_zero('sum(alertmanager_alerts{state="active"})', "active alerts"),
        or_zero('sum(alertmanager_alerts{state="suppressed"})', "suppressed alerts"),
        or_zero(a_minute("alertmanager_notifications_total"), "notifications"),
        or_zero(a_minute("alertmanager_notifications_failed_total"), "failed notifications"),
    ).span(8)


def process() -> Iterable[Panel]:
    yield series(
        "Series in memory",
        "short",
        "Series that have had a sample in the last hours. Memory grows with them.",
        ("sum(prometheus_tsdb_head_series)", "series"),
    ).span(8)
    yield series(
        "Samples stored per second",
        "short",
        "Samples that come in from scrapes and rules.",
        ("sum(rate(prometheus_tsdb_head_samples_appended_total[$__rate_interval]))", "samples"),
    ).span(8)
    yield series(
        "Storage",
        "bytes",
        "Disk space of the finished blocks. It stays 0 for the first hours, which are in the write-ahead log.",
        ("sum(prometheus_tsdb_storage_blocks_bytes)", "blocks"),
    ).span(8)
    yield series(
        "Query time",
        "s",
        "How long queries take, of dashboards and rules together, as quantiles of the last minutes.",
        (
            'max by (quantile) (prometheus_engine_query_duration_seconds{slice="inner_eval"}) >= 0',
            "quantile {{quantile}}",
        ),
    ).span(8)
    yield series(
        "CPU of Prometheus",
        "short",
        "Processors that Prometheus keeps busy.",
        ('sum(rate(process_cpu_seconds_total{job="prometheus"}[$__rate_interval]))', "processors"),
    ).span(8)
    yield series(
        "Memory of Prometheus",
        "bytes",
        "Main memory that Prometheus uses.",
        ('sum(process_resident_memory_bytes{job="prometheus"})', "resident"),
    ).span(8)
