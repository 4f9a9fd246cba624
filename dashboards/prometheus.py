"""The dashboard of the monitoring itself: what Prometheus scrapes, its rules and alerts, and what it needs for them."""

from typing import Iterable

from grafana_foundation_sdk.builders import dashboard as builders

from dashboards.panels import FIRING, Panel, Query, add_row, board, counts, note, number, series

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
    yield note(
        "A scrape must be over before the next one is due: at **100 %** of the interval it is given up, and the target "
        "counts as down. A line of targets that falls is a service or a network that is down."
    )
    yield counts(
        "Targets up by job",
        "Targets of each job that answered their last scrape. A job that is missing has no targets.",
        ("sum by (job) (up)", "{{job}}"),
    ).span(12)
    yield series(
        "Samples per scrape by job",
        "short",
        "Samples that all targets of a job give in one scrape. It should be level: a line that climbs and climbs is a "
        "label with ever new values, and will fill memory and disk.",
        ("sum by (job) (scrape_samples_scraped)", "{{job}}"),
    ).span(12)
    yield series(
        "Scrape duration by job",
        "s",
        "How long the slowest target of each job takes to answer a scrape.",
        ("max by (job) (scrape_duration_seconds)", "{{job}}"),
    ).span(8)
    yield series(
        "Share of the interval taken",
        "percentunit",
        "Duration of the slowest scrape of each job, of the interval between two scrapes. From 50 % on there is little "
        "left for a busy moment.",
        (f"max by (job) (scrape_duration_seconds) / scalar({INTERVAL})", "{{job}}"),
        limits=OF_THE_INTERVAL,
    ).span(8)
    yield series(
        "Interval between scrapes",
        "s",
        "Time that really passes between two scrapes of a target, as quantiles of the last minutes. They should lie on "
        "one another: where they spread, Prometheus itself has too little processor time, and rates get rough.",
        (
            "max by (interval, quantile) (prometheus_target_interval_length_seconds)",
            "{{interval}} quantile {{quantile}}",
        ),
    ).span(8)


def alerting() -> Iterable[Panel]:
    yield note(
        "Each alert has a section in the runbooks: what it means, how to look, what to do. A group of rules must be "
        "done before it is due again, or its alerts come late."
    )
    yield counts(
        "Alerts firing by name",
        "Alerts that fire, by name; none is a line at 0. Pending alerts do not count yet.",
        (
            f'count by (alertname) ({FIRING}) or on () label_replace(vector(0), "alertname", "none", "", "")',
            "{{alertname}}",
        ),
    ).span(12)
    yield series(
        "Rule evaluation by group",
        "s",
        "How long the last evaluation of each group of rules took. What takes longer than its interval is missed.",
        (by_group("prometheus_rule_group_last_duration_seconds"), "{{group}}"),
    ).span(12)
    yield counts(
        "Failed rule evaluations",
        "Evaluations in the last minute that failed, by group, and evaluations that were missed. All should be 0. "
        "Before Prometheus 2.18 failures have no group, and are one line without a name.",
        (by_group("increase(prometheus_rule_evaluation_failures_total[1m])"), "{{group}} failed"),
        (a_minute("prometheus_rule_group_iterations_missed_total"), "missed"),
    ).span(8)
    yield counts(
        "Notifications to Alertmanager",
        "Alerts of the last minute that Prometheus sent, or could not send. While one fires, it is sent repeatedly.",
        or_zero(a_minute("prometheus_notifications_sent_total"), "sent"),
        or_zero(a_minute("prometheus_notifications_errors_total"), "failed"),
        or_zero(a_minute("prometheus_notifications_dropped_total"), "dropped"),
    ).span(8)
    yield counts(
        "Alertmanager",
        "Alerts that Alertmanager holds, and its notifications of the last minute. All 0 where none is scraped. "
        "Before Alertmanager 0.25 alerts that are over count for some minutes more.",
        or_zero('sum(alertmanager_alerts{state="active"})', "active alerts"),
        or_zero('sum(alertmanager_alerts{state="suppressed"})', "suppressed alerts"),
        or_zero(a_minute("alertmanager_notifications_total"), "notifications"),
        or_zero(a_minute("alertmanager_notifications_failed_total"), "failed notifications"),
    ).span(8)


def process() -> Iterable[Panel]:
    yield note("What Prometheus needs. Its memory grows with the series, its disk with the samples and the retention.")
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
