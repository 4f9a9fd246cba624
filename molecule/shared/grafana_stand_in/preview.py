"""Plain pages: login, the list of dashboards, and a read-only preview of one dashboard with live values."""

from __future__ import annotations

import html
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, Tuple
from urllib.parse import urlencode

from . import NOTICE, VERSION
from .provisioning import Json

STYLE = """
body{font:14px sans-serif;margin:0;background:#111217;color:#ccccdc} a{color:#6e9fff}
.notice{background:#fd6;color:#000;padding:.4em 1em} main{padding:8px}
.grid{display:grid;grid-template-columns:repeat(24,1fr);grid-auto-rows:30px;gap:8px}
.panel{background:#181b1f;border:1px solid #2c2f34;padding:4px 8px;overflow:hidden;display:flex;flex-direction:column}
.panel h3{font-size:13px;margin:0 0 4px} .row{background:none;border:0} .row h3{font-size:16px}
.values{flex:1;display:flex;align-items:center;justify-content:space-evenly;font-size:24px;text-align:center}
.values small{display:block;font-size:11px;color:#9a9aa8} .error{color:#f2495c}
.bar{display:flex;align-items:center;margin:1px 0;font-size:12px} .bar span{width:45%}
.bar div{background:#26292e;flex:1} .bar i{display:block;height:11px} svg{flex:1;min-height:0;width:100%}
.legend{font-size:11px} .text{white-space:pre-wrap;font-size:12px;color:#b4b4c0}
"""
PALETTE = ["#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#37872d"]
COLOURS: dict[str, str] = {
    "green": "#73bf69",
    "orange": "#ff9830",
    "red": "#f2495c",
    "blue": "#5794f2",
    "purple": "#b877d9",
}
STEP = 5  # seconds between points; `$__rate_interval` is 4 of them, as Grafana has it
Ask = Callable[[str, Dict[str, Any]], List[Json]]
Marks = List[Tuple[float, str, str]]  # a moment, its colour and its text: an annotation


def page(title: str, body: str, head: str = "") -> str:
    return (
        f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>{head}"
        f"<div class=notice>{html.escape(NOTICE)} Version {VERSION}.</div><main>{body}</main>"
    )


def login_page() -> str:
    return page(
        "Stand-in for Grafana",
        "<form method=post action=/login><input name=user placeholder=user> "
        "<input name=password type=password placeholder=password> <button>Log in</button></form>",
    )


def home_page(boards: Mapping[str, Json]) -> str:
    links = [f"<li><a href=/d/{uid}>{html.escape(board['title'])}</a>" for uid, board in boards.items()]
    return page("Stand-in for Grafana", f"<h1>Dashboards</h1><ul>{''.join(links)}</ul>")


def linked(board: Json, boards: Mapping[str, Json]) -> str:
    """Links to the dashboards that the board's own links name by their tags."""
    tags = {tag for link in board.get("links", []) for tag in link["tags"]}
    others = [other for other in boards.values() if tags & set(other.get("tags", [])) and other is not board]
    return " ".join(f"<a href=/d/{other['uid']}>{html.escape(other['title'])}</a>" for other in others)


def human(value: float, unit: str) -> str:
    if unit == "dateTimeAsIso":
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(value / 1000))
    if unit == "bool_yes_no":
        return "Yes" if value else "No"
    if unit == "percentunit":
        return f"{value:.1%}"
    if unit == "s":
        return f"{value * 1000:.1f} ms" if abs(value) < 1 else f"{value:.2f} s"
    suffix = {"reqps": "req/s", "Bps": "B/s", "bytes": "B"}.get(unit, "")
    scale, prefixes = (1024.0, ["", "Ki", "Mi", "Gi", "Ti"]) if unit in ("Bps", "bytes") else (1000.0, ["", "K", "M"])
    while abs(value) >= scale and len(prefixes) > 1:
        value, prefixes = value / scale, prefixes[1:]
    return f"{value:.4g} {prefixes[0]}{suffix}".rstrip()


def legend(labels: Mapping[str, str], pattern: str) -> str:
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda name: labels.get(name.group(1), ""), pattern) or json.dumps(labels)


def colour(panel: Json, name: str, value: float, number: int) -> str:
    """The colour of a value: by override on its name, by threshold, or from the palette."""
    config = panel.get("fieldConfig", {})
    for override in config.get("overrides", []):
        if re.search(override["matcher"]["options"].strip("/"), name):
            return COLOURS[override["properties"][0]["value"]["fixedColor"]]
    steps = config.get("defaults", {}).get("thresholds", {}).get("steps", [])
    if not steps or config["defaults"].get("color", {}).get("mode") == "palette-classic":
        return PALETTE[number % len(PALETTE)]
    reached = [step["color"] for step in steps if step.get("value") is None or value >= step["value"]]
    return COLOURS[reached[-1]]


def current(target: Json, ask: Ask, start: float, end: float) -> list[tuple[str, float]]:
    """The last value of each series; those of a range query come sorted by their labels."""
    if target.get("instant"):
        results = [(result, result["value"]) for result in ask("query", {"query": target["expr"]})]
    else:
        asked = {"query": target["expr"], "start": start, "end": end, "step": STEP}
        results = [(result, result["values"][-1]) for result in ask("query_range", asked)]
    return [(legend(result["metric"], target.get("legendFormat", "")), float(last[1])) for result, last in results]


def values(panel: Json, ask: Ask, start: float, end: float) -> str:
    unit, top = (panel["fieldConfig"]["defaults"].get(key) for key in ("unit", "max"))
    found = [pair for target in panel["targets"] for pair in current(target, ask, start, end)]
    if not found:
        return "<div class=values>No data</div>"
    paint = [colour(panel, name, value, number) for number, (name, value) in enumerate(found)]
    if panel["type"] in ("stat", "gauge"):
        parts = [
            f"<span style=color:{tint}>{human(value, unit)}<small>{html.escape(name)}</small></span>"
            for tint, (name, value) in zip(paint, found)
        ]
        return f"<div class=values>{''.join(parts)}</div>"
    whole = sum(value for _, value in found) if panel["type"] == "piechart" else max(value for _, value in found)
    parts = [
        f"<div class=bar><span>{html.escape(name)}: {human(value, unit)} ({value / (top or whole or 1):.0%})</span>"
        f"<div><i style='background:{tint};width:{100 * value / (top or whole or 1):.1f}%'></i></div></div>"
        for tint, (name, value) in zip(paint, found)
    ]
    return "".join(parts)


def marks(annotation: Json, ask: Ask, start: float, end: float) -> Marks:
    """The moments that an annotation's query has in the time shown; as in Grafana, each series has each moment once."""
    found = set()
    for result in ask("query_range", {"query": annotation["expr"], "start": start, "end": end, "step": STEP}):
        text = ": ".join(legend(result["metric"], annotation[f"{part}Format"]) for part in ("title", "text"))
        for at, value in result["values"]:
            moment = float(value) / 1000 if annotation.get("useValueForTime") else at
            found |= {(moment, COLOURS[annotation["iconColor"]], text)} if start <= moment <= end else set()
    return sorted(found)


def lines(panel: Json, ask: Ask, start: float, end: float, marked: Marks) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    found = [
        (
            legend(result["metric"], target.get("legendFormat", "")),
            [(at, float(value)) for at, value in result["values"]],
        )
        for target in panel["targets"]
        for result in ask("query_range", {"query": target["expr"], "start": start, "end": end, "step": STEP})
    ]
    if not found:
        return "<div class=values>No data</div>"
    stacked = defaults.get("custom", {}).get("stacking", {}).get("mode") == "normal"
    base: dict[float, float] = {}
    drawn = []
    for number, (name, points) in enumerate(found):
        heights = [(at, value + base.get(at, 0)) for at, value in points]
        if stacked:
            base.update(heights)
        drawn.append((colour(panel, name, 0, number), name, points[-1][1], heights))
    limits = [step for step in defaults.get("thresholds", {}).get("steps", []) if step.get("value") is not None]
    peak = max([height for *_, heights in drawn for _, height in heights] + [step["value"] for step in limits]) or 1
    shapes = [
        f"<line x1=0 x2=300 y1={100 - 96 * step['value'] / peak:.1f} y2={100 - 96 * step['value'] / peak:.1f} "
        f"stroke={COLOURS[step['color']]} stroke-dasharray=4 vector-effect=non-scaling-stroke />"
        for step in limits
    ]
    shapes += [
        f"<line x1={300 * (at - start) / (end - start):.1f} x2={300 * (at - start) / (end - start):.1f} y1=0 y2=100 "
        f"stroke={tint} stroke-dasharray=2 vector-effect=non-scaling-stroke><title>{html.escape(text)}</title></line>"
        for at, tint, text in marked
    ]
    for tint, _, _, heights in drawn:
        path = " ".join(f"{300 * (at - start) / (end - start):.1f},{100 - 96 * y / peak:.1f}" for at, y in heights)
        shapes.append(f"<polyline fill=none stroke={tint} vector-effect=non-scaling-stroke points='{path}' />")
    names = [f"<span style=color:{tint}>&#9644; {html.escape(name)} {human(value, defaults['unit'])}</span>"
             for tint, name, value, _ in drawn]  # fmt: skip
    return (
        f"<small>{human(peak, defaults['unit'])}</small><svg viewBox='0 0 300 100' preserveAspectRatio=none>"
        f"{''.join(shapes)}</svg><div class=legend>{' &nbsp; '.join(names)}</div>"
    )


def panel_html(panel: Json, ask: Ask, start: float, end: float, marked: Marks) -> str:
    place = panel["gridPos"]
    try:
        if panel["type"] == "text":
            content = f"<div class=text>{html.escape(panel['options']['content'].replace('**', ''))}</div>"
        elif panel["type"] == "row":
            content = ""
        else:
            graph = panel["type"] == "timeseries"
            content = lines(panel, ask, start, end, marked) if graph else values(panel, ask, start, end)
    except (ValueError, KeyError) as error:
        content = f"<div class=error>{html.escape(str(error))}</div>"
    return (
        f"<div class='panel {panel['type']}' title='{html.escape(panel.get('description', ''), quote=True)}' style='"
        f"grid-column:{place['x'] + 1}/span {place['w']};grid-row:{place['y'] + 1}/span {place['h']}'>"
        f"<h3>{html.escape(panel.get('title', ''))}</h3>{content}</div>"
    )


def preset(variable: Json) -> str:
    return str(variable["allValue"] if variable.get("includeAll") else variable["current"]["value"])


def dashboard_page(
    board: Json, sources: Mapping[str, Json], query: Callable[..., Any], chosen: Mapping[str, list[str]], links: str
) -> str:
    """The preview. `chosen` holds the page's own query: `var-<name>=<value>` selects a variable's value."""
    span = int(re.sub(r"\D", "", board["time"]["from"])) * {"s": 1, "m": 60, "h": 3600}[board["time"]["from"][-1]]
    names = {"__rate_interval": f"{4 * STEP}s", "__interval": f"{STEP}s", "__range": f"{span}s"}
    for variable in board["templating"]["list"]:
        picked = [re.escape(value) for value in chosen.get(f"var-{variable['name']}", [])]
        names[variable["name"]] = f"({'|'.join(picked)})".replace("\\", "\\\\") if picked else preset(variable)

    def ask(source: Json, path: str, parameters: dict[str, Any]) -> list[Json]:
        expression = re.sub(
            r"\$([a-z_]\w*)|\$\{(\w+)\}", lambda m: names[m.group(1) or m.group(2)], parameters["query"]
        )
        _, content, _ = query(source, f"api/v1/{path}?{urlencode({**parameters, 'query': expression})}", None, "")
        answer = json.loads(content)
        if answer.get("status") != "success":
            raise ValueError(answer.get("error") or answer.get("message"))
        return list(answer["data"]["result"])

    end = time.time()
    shown = (end - span, end)
    marked: Marks = []
    trouble = ""
    for annotation in board["annotations"]["list"]:
        try:
            marked += marks(annotation, partial(ask, sources.get(annotation["datasource"], {})), *shown)
        except (ValueError, KeyError) as error:
            trouble += f"<div class=error>{html.escape(annotation['name'])}: {html.escape(str(error))}</div>"
    with ThreadPoolExecutor(4) as pool:
        panels = pool.map(
            lambda panel: panel_html(panel, partial(ask, sources.get(panel.get("datasource"), {})), *shown, marked),
            board["panels"],
        )
        body = "".join(panels)
    seconds = re.sub(r"\D", "", board.get("refresh") or "") or "30"
    return page(board["title"], f"{links}<h1>{html.escape(board['title'])}</h1>{trouble}<div class=grid>{body}</div>",
                f"<meta http-equiv=refresh content={seconds}>")  # fmt: skip
