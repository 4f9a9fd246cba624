"""The dashboard of the model server and its hosts: operation, resources, the model's figures and its health."""

from typing import Iterable

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models.dashboard import VariableOption, VariableRefresh, VariableSort

from dashboards.panels import (
    Marks,
    Panel,
    add_row,
    bars,
    board,
    coloured,
    mean,
    metric,
    note,
    number,
    pie,
    quantiles,
    rate,
    series,
    share,
)

REQUESTS = "fastapi_requests_total"
DURATION = "fastapi_request_duration_seconds"
PREDICTIONS = "predictions_total"
CONFIDENCE = "prediction_confidence"
STAGES = "inference_stage_duration_seconds"

# What clients ask for. Scrapes and probes would hide an idle or slow server behind many fast answers.
CLIENTS = 'path!~"/metrics|/healthz|/readyz"'
SERVER_ERRORS = 'status_code=~"5.."'
ANSWERS = 'status_code!="499"'  # 499: the client had gone
NOT_REFUSED = 'status_code!="503"'  # an overloaded server refuses at once
PREDICTED = 'path="/predict",status_code=~"2.."'

# Hosts that send load are a job of their own: their processors and disks are no server's.
SERVERS, LOAD_HOSTS = (f'job{operator}"load_generator"' for operator in ("!=", "="))
SENT, SENT_FAILED, SENT_DURATION = "locust_requests_total", "locust_failures_total", "locust_request_duration_seconds"

IDLE, BUSY = 'mode="idle"', 'mode!="idle"'
ROOT = 'mountpoint="/"'
# Single files are bind-mounted in containers; each repeats a file system that is there already.
ON_DISK = 'fstype!~"tmpfs|ramfs|devtmpfs|squashfs|fuse.*",mountpoint!~"/etc/.+"'
# Without what lies on other disks (LVM, RAID) or in memory, and without what stays on the host.
DISKS = 'device!~"(loop|ram|zram|fd|sr|dm-|md).*"'
NETWORKS = 'device!~"lo|(veth|docker|br-|virbr|cali|flannel).*"'

# A dozen digits tell two models apart, and leave room for their names.
MODEL = f'label_replace({metric("model_info")}, "digest", "$1", "sha256", "(.{{12}}).*")'
# The same as one label, for what is shown by model; the shadow's is named so.
NAMED = f'label_join({MODEL}, "model", " ", "version", "digest")'
_SHADOW = f'label_replace({metric("shadow_info")}, "digest", "$1 (shadow)", "sha256", "(.{{12}}).*")'
NAMED_SHADOW = f'label_join({_SHADOW}, "model", " ", "version", "digest")'

# The objectives: a p50 above 50 ms or a p99 above 300 ms, for 5 minutes, is a breach.
OBJECTIVES = ((None, "green"), (0.05, "orange"), (0.3, "red"))
FULLNESS = ((None, "green"), (0.8, "orange"), (0.9, "red"))
# The usual reading of the population stability index: from 0.1 on a shift, from 0.25 on a large one.
SHIFT = ((None, "green"), (0.1, "orange"), (0.25, "red"))
SUCCESS = ((None, "red"), (0.95, "orange"), (0.99, "green"))
LOAD_HOST = ((None, "green"), (0.9, "red"))


def node(name: str, *matchers: str) -> str:
    return metric(name, SERVERS, *matchers)


def node_rate(name: str, *matchers: str) -> str:
    return rate(name, SERVERS, *matchers)


def dashboard() -> builders.Dashboard:
    title = "Model Monitoring Dashboard"
    description = "The model server as its clients see it, the hosts it runs on, what the model predicts and how well."
    made = board("model-monitoring", title, description)
    made.with_variable(instances()).with_variable(features()).annotation(deployments())
    for panel in top():
        made.with_panel(panel)
    add_row(made, "Operation Metrics", operation())
    add_row(made, "Resource Metrics", resources())
    add_row(made, "Load Test: Client and Server", load_test())
    add_row(made, "Model Performance Metrics", model_performance())
    add_row(made, "Model Health: Inputs, Confidence and Drift", model_health())
    add_row(made, "Models Side by Side", models())
    return made


def instances() -> builders.QueryVariable:
    """The watched hosts: of each target's address, what stands before the port."""
    return (
        builders.QueryVariable("instance")
        .label("Host")
        .query('label_values(up{job=~"node|model_server"}, instance)')
        .regex("/(.+):[0-9]+/")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def features() -> builders.QueryVariable:
    """What the inputs and predictions are compared by; there is none without a reference."""
    return (
        builders.QueryVariable("feature")
        .label("Feature")
        .query("label_values(feature_reference_ratio, feature)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .current(VariableOption(selected=True, text="brightness", value="brightness"))
    )


def deployments() -> Marks:
    """Where a server has begun to serve a release and a model: by a deployment or a rollback, or after a restart.

    While the former and the next master answer scrapes by turns, each page has the moment with its own model, so that
    a series has the same one again, and Grafana marks it once.
    """
    moment = f"1000 * {metric('model_loaded_timestamp_seconds')} * on (instance, job) group_right {MODEL}"
    text = "release {{release}}, {{name}} {{version}} ({{digest}}) on {{instance}}"
    return Marks("Deployment or restart", text, moment, "purple")


def top() -> Iterable[Panel]:
    yield (
        number(
            "Date and time",
            "dateTimeAsIso",
            "Prometheus' clock, in this browser's time zone. While it stands still, no figure here is fresh.",
            ("vector(time()) * 1000", "now"),
        )
        .span(6)
        .height(3)
    )
    yield (
        number(
            "Targets up",
            "none",
            "Targets on the selected hosts that answered their last scrape, of all that are configured.",
            (f"sum({metric('up')})", "up"),
            (f"count({metric('up')})", "of"),
        )
        .span(5)
        .height(3)
    )
    yield (
        note(
            "The objectives: **p50 up to 50 ms**, **p99 up to 300 ms**. Either above it for 5 minutes is a breach.",
            "Rates are taken over 20 seconds or more, and over four scrapes or more.",
        )
        .span(13)
        .height(3)
    )


def operation() -> Iterable[Panel]:
    answers = f"sum({rate(REQUESTS, CLIENTS, ANSWERS, window='1m')})"
    failures = f"(sum({rate(REQUESTS, CLIENTS, SERVER_ERRORS, window='1m')}) or vector(0))"
    yield share(
        "HTTP success rate",
        "Share of the answers of the last minute that were no server error (5xx).",
        (f"1 - {failures} / clamp_min({answers}, 1e-9)", "1 m average"),
        limits=SUCCESS,
    ).span(5)
    yield note(
        "**HTTP success rate**",
        "Of all answers of the last minute, the share that was not a 5xx. A client's own mistake (4xx) is no failure "
        "of the server; one that goes away (499) gets no answer. While nothing is asked, nothing fails: 100 %.",
    ).span(4)
    by_status = series(
        "Requests by status code",
        "reqps",
        "Answers per second, by HTTP status code.",
        (f"sum by (status_code) ({rate(REQUESTS, CLIENTS)})", "{{status_code}}"),
        stacked=True,
    ).span(11)
    yield coloured(by_status, {"/^2/": "green", "/^3/": "blue", "/^4/": "orange", "/^5/": "red"})
    yield note(
        "**Requests by status code**",
        "The load, and how it ends. 2xx: served. 4xx: the client sent what is no image. "
        "5xx: the server failed, and its log says why.",
    ).span(4)
    pending = metric("fastapi_requests_in_progress")  # it has no path: each server's own scrape is in it, as 1
    yield series(
        "Requests in progress",
        "short",
        "Requests that have come in and are not answered yet, over all workers and without the scrape itself.",
        (f"clamp_min(sum({pending}) - count(count by (instance) ({pending})), 0)", "in progress"),
    ).span(8)
    yield note(
        "**Requests in progress**",
        "The queue. It should swing around a small figure. If it keeps growing, requests come faster than they are "
        "answered.",
    ).span(4)
    yield bars(
        "Total requests by endpoint",
        "short",
        "Answers since the model server's start, scrapes and probes included.",
        (f"sum by (method, path) ({metric(REQUESTS)})", "{{method}} {{path}}"),
    ).span(8)
    yield note(
        "**Total requests by endpoint**",
        "What was asked since the model server's start. `/metrics` grows by one with each scrape, which no other "
        "panel counts.",
    ).span(4)
    yield series(
        "Server latency",
        "s",
        "Time from request to answer, at all endpoints, without refusals (503). "
        "The lines across are the objectives for p50 and p99.",
        *quantiles(DURATION, CLIENTS, NOT_REFUSED),
        limits=OBJECTIVES,
    ).span(18)
    yield note(
        "**Server latency**",
        "Half of the requests are faster than **p50**, all but 1 in 100 faster than **p99**. p50 should stay below the "
        "orange line (50 ms), p99 below the red one (300 ms).",
        "A quantile is interpolated between the bounds of a histogram's buckets: small differences mean little.",
    ).span(6)


def resources() -> Iterable[Panel]:
    yield number(
        "Processors",
        "none",
        "Logical processors of each host.",
        (f"count by (instance) ({node('node_cpu_seconds_total', IDLE)})", "{{instance}}"),
    ).span(4)
    yield number(
        "Memory",
        "bytes",
        "Main memory of each host.",
        (node("node_memory_MemTotal_bytes"), "{{instance}}"),
    ).span(4)
    swap, swap_free = (f"sum({node(f'node_memory_Swap{what}_bytes')})" for what in ("Total", "Free"))
    yield number(
        "Swap used and total",
        "bytes",
        "Swap in use and in all, over the selected hosts. Both are 0 where there is none.",
        (f"{swap} - {swap_free}", "used"),
        (swap, "total"),
    ).span(6)
    size, available = (node(f"node_filesystem_{what}_bytes", ROOT) for what in ("size", "avail"))
    yield number(
        "Root file system",
        "bytes",
        "Size of each host's file system at /.",
        (f"max by (instance) ({size})", "{{instance}}"),
    ).span(4)
    yield (
        bars(
            "Root file system used",
            "percentunit",
            "Share of each host's file system at / that a service can no longer write to.",
            (f"max by (instance) (1 - {available} / {size})", "{{instance}}"),
            limits=FULLNESS,
        )
        .max(1)
        .span(6)
        .height(4)
    )
    yield (
        series(
            "CPU by mode",
            "percentunit",
            "Share of the processors' time, averaged over all processors of the selected hosts: at 100 % all are busy.",
            (f"avg by (mode) ({node_rate('node_cpu_seconds_total', BUSY)})", "{{mode}}"),
            stacked=True,
        )
        .max(1)
        .span(12)
    )
    yield series(
        "System load",
        "short",
        "Processes that run or wait to run. More than there are processors, for long, is too much.",
        *((node(f"node_load{minutes}"), f"{{{{instance}}}} {minutes} m") for minutes in (1, 5, 15)),
    ).span(12)
    total, usable, free = (f"sum({node(f'node_memory_Mem{what}_bytes')})" for what in ("Total", "Available", "Free"))
    yield series(
        "Memory usage",
        "bytes",
        "Main memory of the selected hosts. The three add up to all of it.",
        (f"{total} - {usable}", "used"),
        (f"clamp_min({usable} - {free}, 0)", "cache that can be freed"),
        (free, "free"),
        stacked=True,
    ).span(12)
    sizes, availables = (node(f"node_filesystem_{what}_bytes", ON_DISK) for what in ("size", "avail"))
    yield (
        bars(
            "Disk space used",
            "percentunit",
            "Share used of each file system that is kept on a disk.",
            (f"max by (instance, mountpoint) (1 - {availables} / {sizes})", "{{instance}} {{mountpoint}}"),
            limits=FULLNESS,
        )
        .max(1)
        .span(12)
    )
    yield series(
        "Disk I/O",
        "Bps",
        "Bytes per second from and to the disks.",
        (f"sum by (instance) ({node_rate('node_disk_read_bytes_total', DISKS)})", "{{instance}} read"),
        (f"sum by (instance) ({node_rate('node_disk_written_bytes_total', DISKS)})", "{{instance}} written"),
    ).span(12)
    yield series(
        "Network traffic",
        "Bps",
        "Bytes per second over the network, without what a host sends to itself.",
        (f"sum by (instance) ({node_rate('node_network_receive_bytes_total', NETWORKS)})", "{{instance}} received"),
        (f"sum by (instance) ({node_rate('node_network_transmit_bytes_total', NETWORKS)})", "{{instance}} sent"),
    ).span(12)


def load_test() -> Iterable[Panel]:
    """Both sides over each other; the client's does not follow the choice of hosts, which are servers."""
    sides = "What the client measures does not follow the choice of hosts."
    client = f"sum by (le) (rate({SENT_DURATION}_bucket[$__rate_interval]))"
    latency = series(
        "Latency: client and server",
        "s",
        f"Time until the answer, as Locust measures it and as the server does, without refusals (503) there. {sides}",
        *((f"histogram_quantile({q}, {client}) >= 0", f"client p{q * 100:.0f}") for q in (0.5, 0.99)),
        *((promql, f"server {legend}") for promql, legend in quantiles(DURATION, CLIENTS, NOT_REFUSED, by=(0.5, 0.99))),
    )
    colours = {
        "client p50": "light-blue",
        "client p99": "dark-blue",
        "server p50": "light-green",
        "server p99": "green",
    }
    yield coloured(latency, {f"/^{legend}$/": colour for legend, colour in colours.items()}).span(18)
    yield note(
        "**Load test**",
        "Empty while no Locust runs. Between client and server lie the network, the front door and the wait for a free "
        "connection: a **client** far above the **server** waits there, or in a load host that is busy.",
        "Above **90 %** (red) the load host is the limit: its latencies are its own.",
    ).span(6)
    yield series(
        "Requests: client and server",
        "reqps",
        f"Requests per second that Locust has got an answer to, and that the selected servers have answered. {sides}",
        (f"sum(rate({SENT}[$__rate_interval]))", "client"),
        (f"sum({rate(REQUESTS, CLIENTS)})", "server"),
    ).span(6)
    yield series(
        "Failures: client and server",
        "reqps",
        "Requests per second whose answer Locust did not expect, that got none or could not be sent; and server "
        f"errors (5xx), some of which Locust asks for. {sides}",
        (f"sum(rate({SENT_FAILED}[$__rate_interval]))", "client"),
        (f"sum({rate(REQUESTS, CLIENTS, SERVER_ERRORS)}) or vector(0)", "server"),
    ).span(6)
    yield series(
        "Simulated users",
        "short",
        "Users of each load host's Locust, those of its workers elsewhere included. "
        "This does not follow the choice of hosts.",
        ("sum by (instance) (locust_users)", "{{instance}}"),
    ).span(6)
    idle = f"avg by (instance) (rate(node_cpu_seconds_total{{{LOAD_HOSTS},{IDLE}}}[$__rate_interval]))"
    yield (
        series(
            "CPU of the load hosts",
            "percentunit",
            "Share of the processors' time of each load host, and of one processor by its busiest process of Locust, "
            "which cannot have more. This does not follow the choice of hosts.",
            (f"1 - {idle}", "{{instance}}"),
            ("max by (instance) (locust_cpu_ratio)", "{{instance}} busiest Locust"),
            limits=LOAD_HOST,
        )
        .max(1)
        .span(6)
    )


def model_performance() -> Iterable[Panel]:
    yield series(
        "Inference latency",
        "s",
        "Time from request to prediction at /predict. The lines across are the objectives for p50 and p99.",
        *quantiles(DURATION, PREDICTED),
        limits=OBJECTIVES,
    ).span(10)
    yield series(
        "Predictions by class",
        "short",
        "Predictions per second, by predicted class.",
        (f"sum by (class) ({rate(PREDICTIONS)})", "{{class}}"),
        stacked=True,
    ).span(8)
    yield pie(
        "Prediction distribution",
        "short",
        "Share of each class in the predictions of the time shown.",
        (f"sum by (class) (increase({metric(PREDICTIONS)}[$__range]))", "{{class}}"),
    ).span(6)


def model_health() -> Iterable[Panel]:
    yield number(
        "Model in service",
        "none",
        "Selected servers that have loaded this model: its name, version and the start of its weights' SHA-256.",
        (f"count by (name, version, digest) ({MODEL})", "{{name}} {{version}} ({{digest}})"),
        named=True,
    ).span(10)
    yield number(
        "Model loaded",
        "dateTimeAsIso",
        "When the last of the selected servers loaded its model.",
        (f"1000 * max({metric('model_loaded_timestamp_seconds')})", "loaded"),
    ).span(6)
    yield (
        note(
            "**Model in service** counts the servers by model: more than one model is a rollout half done. "
            "The **purple line** through all graphs of this dashboard is where a server loaded its model, at a change "
            "of the version or a restart; point at its foot for which.",
        )
        .span(8)
        .height(4)
    )
    yield (
        series(
            "Prediction confidence",
            "percentunit",
            "How sure the model is: the median (p50) of each predicted class, and p10 over all classes.",
            *quantiles(CONFIDENCE, by=(0.5,), label="class"),
            *quantiles(CONFIDENCE, by=(0.1,)),
        )
        .max(1)
        .span(8)
    )
    yield note(
        "**Prediction confidence**",
        "Nine of ten predictions are surer than **p10**. A model that meets images unlike those it learned from is "
        "often, not always, less sure of them.",
    ).span(4)
    yield series(
        "Stages of a prediction",
        "s",
        "Mean time per request in each stage; together, about what a prediction takes inside the server.",
        mean(STAGES, "stage"),
        stacked=True,
    ).span(8)
    yield note(
        "**Stages of a prediction**",
        "**read** waits for the client's bytes. **decode** and **preprocess** grow with the image. **forward** is the "
        "model: if it grows under load, the processors are short.",
    ).span(4)
    for window, name in (("5m", "5 minutes"), ("1h", "1 hour")):
        yield series(
            f"Drift over {name}",
            "short",
            f"Population stability index of the last {name} against the reference, by feature, over all servers: "
            "this does not follow the choice of hosts.",
            (f"feature:feature_observations:psi{window}", "{{feature}}"),
            limits=SHIFT,
        ).span(8)
    yield note(
        "**Drift**",
        "How far the images and predictions of late are from the reference set that the model came with. "
        "0: the same distribution. From **0.1** on (orange) look closer, from **0.25** on (red) the model answers "
        "for other images than it was tested with.",
        "Empty while there are fewer than 200 predictions in the time named, or 20 for each bin, and always for a "
        "model without a `reference.json`.",
    ).span(8)
    shares = " or ".join(
        f'label_replace(feature_bin:{recorded}{{feature=~"$feature"}}, "of", "{of}", "", "")'
        for of, recorded in (("observed", "feature_observations:ratio5m"), ("reference", "feature_reference:ratio"))
    )
    distribution = bars(
        "Observed and reference distribution",
        "percentunit",
        "Share of each bin of the chosen feature, in the last 5 minutes and in the reference, over all servers: "
        "this does not follow the choice of hosts.",
        (f"sum by (bin, of) ({shares})", "{{bin}} {{of}}"),
        sorted_by_labels=True,
    )
    yield coloured(distribution, {"/ observed$/": "blue", "/ reference$/": "green"}).span(8).height(14)
    yield (
        note(
            "**Observed and reference distribution**",
            "Of the **feature** chosen at the top of the page. The bins are tenths of the reference set, from the "
            "lowest values (00) to the highest, or the predicted classes. "
            "Where blue and green differ, the index above grows.",
            "Empty for a model without a `reference.json`: `model-server reference` makes one from images.",
        )
        .span(4)
        .height(14)
    )
    yield (
        series(
            "Rejected inputs by reason",
            "reqps",
            "Requests per second whose input was no image that the model takes, by reason.",
            (f"sum by (reason) ({rate('rejected_inputs_total')})", "{{reason}}"),
            stacked=True,
        )
        .span(8)
        .height(14)
    )
    yield (
        note(
            "**Rejected inputs by reason**",
            "The clients' mistakes, named. Many of one reason at once are a client that has changed; `image_too_large` "
            "and `body_too_large` are the server's own limits, which its settings can move.",
        )
        .span(4)
        .height(14)
    )


def models() -> Iterable[Panel]:
    """What a canary, a shadow or a rollout half done shows: each model beside the other."""
    predictions = by_model(rate(PREDICTIONS), rate("shadow_predictions_total"))
    classes = f"sum by (model, class) ({predictions}) / on (model) group_left () sum by (model) ({predictions}) >= 0"
    yield (
        series(
            "Classes by model",
            "percentunit",
            "Share of each class in the predictions of each model.",
            (classes, "{{model}} {{class}}"),
        )
        .max(1)
        .span(8)
    )
    buckets = by_model(rate(f"{CONFIDENCE}_bucket"), rate(f"shadow_{CONFIDENCE}_bucket"))
    yield (
        series(
            "Confidence by model",
            "percentunit",
            "The median of the predictions' confidence, by model.",
            (f"histogram_quantile(0.5, sum by (le, model) ({buckets})) >= 0", "{{model}}"),
        )
        .max(1)
        .span(8)
    )
    yield note(
        "**Models side by side**",
        "Each line is a model: its version and the start of its weights' SHA-256. There are two while a canary or a "
        "rollout goes on. One with **(shadow)** sees copies of requests and answers nobody: it has no latency and no "
        "errors here.",
        "A canary is judged by all four: classes and confidence like those of the other model, as few errors, as fast.",
    ).span(8)
    durations = by_model(rate(f"{DURATION}_bucket", PREDICTED))
    yield series(
        "Latency by model",
        "s",
        "p99 of the time from request to prediction at /predict, by model.",
        (f"histogram_quantile(0.99, sum by (le, model) ({durations})) >= 0", "{{model}}"),
        limits=OBJECTIVES,
    ).span(8)
    answers, errors = (
        f"sum by (model) ({by_model(rate(REQUESTS, CLIENTS, *which))})" for which in ((), (SERVER_ERRORS,))
    )
    yield (
        series(
            "Server errors by model",
            "percentunit",
            "Share of the answers that were server errors (5xx), by the model of the server.",
            (f"({errors} or 0 * {answers}) / {answers} >= 0", "{{model}}"),
        )
        .max(1)
        .span(8)
    )
    yield (
        number(
            "Agreement of the shadow",
            "percentunit",
            "Share of the copied requests so far in which the shadow says the same as the model that serves. "
            "Empty without a shadow.",
            (f"avg({metric('shadow_agreement_ratio')})", "agreement"),
        )
        .span(8)
        .height(8)
    )


def by_model(served: str, shadow: str = "") -> str:
    """The series of all servers with the label `model`, and those of their shadows."""
    named = f"{served} * on (instance, job) group_left (model) {NAMED}"
    return f"({named} or {shadow} * on (instance, job) group_left (model) {NAMED_SHADOW})" if shadow else named
