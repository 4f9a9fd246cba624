"""The dashboard of the model server and its hosts: operation, resources, the model's figures and its health."""

from typing import Iterable, Sequence

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import timeseries
from grafana_foundation_sdk.models.dashboard import VariableOption, VariableRefresh, VariableSort

from dashboards.panels import (
    FIRING,
    Marks,
    Panel,
    Query,
    add_row,
    bars,
    board,
    coloured,
    counts,
    dashed,
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
CLIENTS = 'path!~"/metrics|/healthz|/readyz|/probe"'
SERVER_ERRORS = 'status_code=~"5.."'
ANSWERS = 'status_code!="499"'  # 499: the client had gone
NOT_REFUSED = 'status_code!="503"'  # an overloaded server refuses at once
PREDICTED = 'path="/predict",status_code=~"2.."'

# Hosts that send load are a job of their own: their processors and disks are no server's.
SERVERS, LOAD_HOSTS = (f'job{operator}"load_generator"' for operator in ("!=", "="))
LABELLED, RIGHT, WRONG = "feedback_by_confidence_total", 'correct="true"', 'correct="false"'
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

# The objectives for latency, as the rules have them: `prometheus_objective_…` of the role.
OBJECTIVES = {0.5: "objective:latency_p50:seconds", 0.99: "objective:latency_p99:seconds"}
OF_THE_OBJECTIVE = ((None, "green"), (0.8, "orange"), (1, "red"))
BUDGET_LEFT = ((None, "red"), (0, "orange"), (0.25, "green"))
NO_ALERT = ((None, "green"), (1, "red"))
ALL_SERVERS = "It is of all servers, and does not follow the choice of hosts."
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
    add_row(made, "Model Quality: Labels and Estimates", model_quality())
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
    # Grafana draws a moment from before the time shown, too: at the edge, or inside another graph.
    moments = f"(1000 * {metric('model_loaded_timestamp_seconds')} >= $__from)"
    moment = f"{moments} * on (instance, job) group_right {MODEL}"
    text = "release {{release}}, {{name}} {{version}} ({{digest}}) on {{instance}}"
    return Marks("Deployment or restart", text, moment, "purple")


def objectives(*of: float) -> Sequence[Query]:
    return [(OBJECTIVES[quantile], f"objective p{quantile * 100:.0f}") for quantile in of]


def with_objectives(panel: timeseries.Panel) -> timeseries.Panel:
    return dashed(dashed(panel, "/^objective p50$/", "orange"), "/^objective p99$/", "red")


def top() -> Iterable[Panel]:
    """What one look at the page tells: is it up, is it fast, is it right."""
    yield (
        number(
            "Date and time",
            "time:YYYY-MM-DD HH:mm:ss",
            "Prometheus' clock, in this browser's time zone. While it stands still, no figure here is fresh.",
            ("vector(time()) * 1000", "now"),
        )
        .span(5)
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
        .span(3)
        .height(3)
    )
    yield (
        number(
            "Latency, of its objective",
            "percentunit",
            "Time from request to answer, as a share of the objective for it: above 100 % it is slower than it should "
            "be. Empty while nothing is asked.",
            *(
                (f"({promql}) / scalar({objective})", legend)
                for objective, (promql, legend) in zip(
                    OBJECTIVES.values(), quantiles(DURATION, CLIENTS, NOT_REFUSED, by=tuple(OBJECTIVES))
                )
            ),
            limits=OF_THE_OBJECTIVE,
        )
        .decimals(0)
        .span(4)
        .height(3)
    )
    yield (
        number(
            "Error budget left",
            "percentunit",
            "Of the failed answers (5xx) that the objective allows in its days, the share that has not happened yet. "
            f"Below 0 the objective is missed. {ALL_SERVERS}",
            ("min(job:fastapi_error_budget:left_ratio)", "left"),
            limits=BUDGET_LEFT,
        )
        .decimals(0)
        .span(3)
        .height(3)
    )
    yield (
        number(
            "Accuracy",
            "percentunit",
            "Share of right predictions: of those labelled within a day, as the confidence of the last 15 minutes lets "
            "expect, and as the bundle promises. Empty where there are no labels, or where the bundle has no "
            f"`accuracy.json`. {ALL_SERVERS}",
            ("min(version:feedback_right:ratio1d)", "labelled"),
            ("min(job:expected_right_predictions:ratio15m)", "estimate"),
            ("min(version:model_accuracy:ratio)", "bundle"),
        )
        .decimals(1)
        .no_value("unknown")
        .span(6)
        .height(3)
    )
    yield (
        number(
            "Largest drift",
            "none",
            "Population stability index of the feature that has moved most, in the last 5 minutes: from 0.1 on look "
            f"closer, from 0.25 on the inputs are others than those of the reference. {ALL_SERVERS}",
            ("max(feature:feature_observations:psi5m)", "psi"),
            limits=SHIFT,
        )
        .decimals(2)
        .no_value("unknown")
        .span(3)
        .height(3)
    )
    no_alert = f'label_replace(absent({FIRING}) - 1, "alertname", "none", "", "")'
    yield (
        number(
            "Alerts firing",
            "none",
            "Alerts that fire, by name, with their number. Each has a section in docs/runbooks.md. "
            "This does not follow the choice of hosts.",
            (f"count by (alertname) ({FIRING}) or {no_alert}", "{{alertname}}"),
            limits=NO_ALERT,
            named=True,
        )
        .span(24)
        .height(3)
    )


def operation() -> Iterable[Panel]:
    yield note(
        "Fast enough: **p50** and **p99** stay below their dashed lines, the objectives. Working: nothing is red "
        "(5xx), and no line of requests in progress climbs."
    )
    latency = series(
        "Server latency",
        "s",
        "Time from request to answer, at all endpoints, without refusals (503). Half of the requests are faster than "
        "p50, all but 1 in 100 faster than p99. The dashed lines are the objectives. A quantile is interpolated "
        "between the bounds of a histogram's buckets: small differences mean little.",
        *quantiles(DURATION, CLIENTS, NOT_REFUSED),
        *objectives(0.5, 0.99),
    )
    yield with_objectives(latency).span(12).height(7)
    by_status = series(
        "Requests by status code",
        "reqps",
        "Answers per second, by HTTP status code. 2xx: served. 4xx: the client sent what is no image. "
        "5xx: the server failed, and its log says why. Rates are taken over 20 seconds or more, and four scrapes or "
        "more.",
        (f"sum by (status_code) ({rate(REQUESTS, CLIENTS)})", "{{status_code}}"),
        stacked=True,
    )
    colours = {"/^2/": "green", "/^3/": "blue", "/^4/": "orange", "/^5/": "red"}
    yield coloured(by_status, colours).span(12).height(7)
    answers = f"sum({rate(REQUESTS, CLIENTS, ANSWERS, window='1m')})"
    failures = f"(sum({rate(REQUESTS, CLIENTS, SERVER_ERRORS, window='1m')}) or vector(0))"
    yield share(
        "HTTP success rate",
        "Share of the answers of the last minute that were no server error (5xx). A client's own mistake (4xx) is no "
        "failure of the server; one that goes away (499) gets no answer. While nothing is asked, nothing fails: 100 %.",
        (f"1 - {failures} / clamp_min({answers}, 1e-9)", "1 m average"),
        limits=SUCCESS,
    ).span(6)
    pending = metric("fastapi_requests_in_progress")  # it has no path: each server's own scrape is in it, as 1
    yield counts(
        "Requests in progress",
        "The queue: requests that have come in and are not answered yet, over all workers and without the scrape "
        "itself. If it keeps growing, requests come faster than they are answered.",
        (f"clamp_min(sum({pending}) - count(count by (instance) ({pending})), 0)", "in progress"),
    ).span(9)
    yield bars(
        "Total requests by endpoint",
        "short",
        "Answers since the model server's start. `/metrics` grows by one with each scrape, which no other panel "
        "counts.",
        (f"sum by (method, path) ({metric(REQUESTS)})", "{{method}} {{path}}"),
    ).span(9)


def resources() -> Iterable[Panel]:
    yield note(
        "The selected hosts. A processor that is always busy makes requests wait; a file system above **90 %** or a "
        "memory without **free** parts stops services soon."
    )
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
    yield note(
        "Empty while no Locust runs. A **client** far above the **server** waits in the network, at the front door, or "
        "in a load host that is busy: above **90 %** of its CPU its latencies are its own."
    )
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
    yield coloured(latency, {f"/^{legend}$/": colour for legend, colour in colours.items()}).span(12)
    yield series(
        "Requests: client and server",
        "reqps",
        f"Requests per second that Locust has got an answer to, and that the selected servers have answered. {sides}",
        (f"sum(rate({SENT}[$__rate_interval]))", "client"),
        (f"sum({rate(REQUESTS, CLIENTS)})", "server"),
    ).span(12)
    yield series(
        "Failures: client and server",
        "reqps",
        "Requests per second whose answer Locust did not expect, that got none or could not be sent; and server "
        f"errors (5xx), some of which Locust asks for. {sides}",
        (f"sum(rate({SENT_FAILED}[$__rate_interval]))", "client"),
        (f"sum({rate(REQUESTS, CLIENTS, SERVER_ERRORS)}) or vector(0)", "server"),
    ).span(8)
    yield counts(
        "Simulated users",
        "Users of each load host's Locust, those of its workers elsewhere included. "
        "This does not follow the choice of hosts.",
        ("sum by (instance) (locust_users)", "{{instance}}"),
    ).span(8)
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
        .span(8)
    )


def model_performance() -> Iterable[Panel]:
    yield note("What the model answers, and how long a client waits for it. A class that vanishes is worth a look.")
    latency = series(
        "Inference latency",
        "s",
        "Time from request to prediction at /predict. The dashed lines are the objectives for p50 and p99.",
        *quantiles(DURATION, PREDICTED),
        *objectives(0.5, 0.99),
    )
    yield with_objectives(latency).span(10)
    yield series(
        "Predictions by class",
        "reqps",
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


def model_quality() -> Iterable[Panel]:
    """Whether the answers are right: by labels, and before they come, by confidence."""
    yield note(
        "Right: **labelled** and **estimate** stay near the dashed line, the accuracy that the bundle promises. Labels "
        "come by `/feedback`. A model that is sure and wrong deceives the estimate: labels are the truth."
    )
    accuracy = series(
        "Accuracy: labels, estimate and bundle",
        "percentunit",
        "Share of right predictions: of those labelled within a day, by version; as the confidence of the last 15 "
        f"minutes lets expect; and on the images that the bundle was judged by. {ALL_SERVERS}",
        ("version:feedback_right:ratio1d", "labelled {{version}}"),
        ("job:expected_right_predictions:ratio15m", "estimate"),
        ("version:model_accuracy:ratio", "bundle {{version}}"),
    ).max(1)
    yield dashed(accuracy, "/^bundle/", "green").span(9)
    yield series(
        "Feedback",
        "reqps",
        "Labels per second that clients sent: for right and for wrong predictions, and those that were refused, by "
        "reason.",
        (f"sum({rate(LABELLED, RIGHT)})", "right"),
        (f"sum({rate(LABELLED, WRONG)})", "wrong"),
        (f"sum by (reason) ({rate('rejected_feedback_total')}) > 0", "refused: {{reason}}"),
        stacked=True,
    ).span(5)
    mistaken = f"sum by (class, label) (increase({metric('feedback_total')}[1d]))"
    yield bars(
        "Most frequent mistakes",
        "short",
        "Labels of the last day that differ from the prediction: what was predicted, and what it really was.",
        (
            f'topk(10, (label_replace({mistaken}, "same", "$1", "label", "(.*)") '
            f'unless label_replace({mistaken}, "same", "$1", "class", "(.*)")) > 0)',
            "{{class}}, really {{label}}",
        ),
    ).span(5)
    right, labelled = (f"sum by (bin) (increase({metric(LABELLED, *which)}[1d]))" for which in ((RIGHT,), ()))
    yield (
        bars(
            "Calibration",
            "percentunit",
            "Of the predictions labelled within a day, the share that was right, by the upper bound of their "
            "confidence: a model that knows what it does not know is right as often as it is sure.",
            (f"{right} / {labelled} >= 0", "sure up to {{bin}}"),
            sorted_by_labels=True,
        )
        .max(1)
        .span(5)
    )


def model_health() -> Iterable[Panel]:
    yield note(
        "**Drift** from 0.1 on: look closer; from **0.25** on the model answers for other images than it was tested "
        "with. The **purple lines** are deployments and restarts: point at a foot for which."
    )
    yield number(
        "Model in service",
        "none",
        "Selected servers that have loaded this model: its name, version and the start of its weights' SHA-256. "
        "More than one model is a rollout half done, or a canary.",
        (f"count by (name, version, digest) ({MODEL})", "{{name}} {{version}} ({{digest}})"),
        named=True,
    ).span(14)
    yield number(
        "Model loaded",
        "time:YYYY-MM-DD HH:mm:ss",
        "When the last of the selected servers loaded its model.",
        (f"1000 * max({metric('model_loaded_timestamp_seconds')})", "loaded"),
    ).span(10)
    yield (
        series(
            "Prediction confidence",
            "percentunit",
            "How sure the model is: the median (p50) of each predicted class, and p10 over all classes, which nine of "
            "ten predictions exceed. A model that meets unknown images is often, not always, less sure of them.",
            *quantiles(CONFIDENCE, by=(0.5,), label="class"),
            *quantiles(CONFIDENCE, by=(0.1,)),
        )
        .max(1)
        .span(8)
    )
    yield series(
        "Stages of a prediction",
        "s",
        "Mean time per request in each stage; together, about what a prediction takes inside the server. read waits "
        "for the client's bytes; decode and preprocess grow with the image; if forward, the model, grows under load, "
        "the processors are short.",
        mean(STAGES, "stage"),
        stacked=True,
    ).span(8)
    yield series(
        "Rejected inputs by reason",
        "reqps",
        "Requests per second whose input was no image that the model takes, by reason. Many of one reason at once are "
        "a client that has changed; image_too_large and body_too_large are the server's own limits, which its settings "
        "can move.",
        (f"sum by (reason) ({rate('rejected_inputs_total')}) > 0", "{{reason}}"),
        stacked=True,
    ).span(8)
    for window, name in (("5m", "5 minutes"), ("1h", "1 hour")):
        yield (
            series(
                f"Drift over {name}",
                "short",
                f"Population stability index of the last {name} against the reference, by feature; 0 is the same "
                "distribution. Empty below 200 predictions in that time, or 20 for each bin, and always without a "
                f"`reference.json`. {ALL_SERVERS}",
                (f"feature:feature_observations:psi{window}", "{{feature}}"),
                limits=SHIFT,
            )
            .axis_soft_max(0.3)
            .span(8)
            .height(12)
        )
    shares = " or ".join(
        f'label_replace(feature_bin:{recorded}{{feature=~"$feature"}}, "of", "{of}", "", "")'
        for of, recorded in (("observed", "feature_observations:ratio5m"), ("reference", "feature_reference:ratio"))
    )
    distribution = bars(
        "Observed and reference distribution",
        "percentunit",
        "Share of each bin of the feature chosen at the top of the page, in the last 5 minutes and in the reference. "
        "Bins are tenths of the reference, from the lowest values (00) to the highest, or the predicted classes. Empty "
        f"without a `reference.json`, which `model-server reference` makes from images. {ALL_SERVERS}",
        (f"sum by (bin, of) ({shares})", "{{bin}} {{of}}"),
        sorted_by_labels=True,
    )
    yield coloured(distribution, {"/ observed$/": "blue", "/ reference$/": "green"}).span(8).height(12)


def models() -> Iterable[Panel]:
    """What a canary, a shadow or a rollout half done shows: each model beside the other."""
    yield note(
        "A canary is judged by classes, confidence, latency and errors: all like those of the other model. One with "
        "**(shadow)** sees copies of requests and answers nobody: it has no latency and no errors here."
    )
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
        .span(12)
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
        .span(12)
    )
    durations = by_model(rate(f"{DURATION}_bucket", PREDICTED))
    latency = series(
        "Latency by model",
        "s",
        "p99 of the time from request to prediction at /predict, by model. The dashed line is the objective.",
        (f"histogram_quantile(0.99, sum by (le, model) ({durations})) >= 0", "{{model}}"),
        *objectives(0.99),
    )
    yield with_objectives(latency).span(8)
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
