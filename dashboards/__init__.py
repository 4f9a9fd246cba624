"""Grafana dashboards as code: `python -m dashboards` writes the JSON files that the grafana role provisions.

Each dashboard is a module with a `dashboard()` and is listed in `__main__`; `panels` holds the kinds of panels
and of queries, so that a panel is a few lines; `compatibility` keeps the JSON to what Grafana 8.0 and today's
Grafana both understand.

The builders are those of grafana-foundation-sdk, Grafana's own library. grafanalib 0.7.1 was the alternative:
it fills every panel with nulls and fields of Grafana 5, and is no longer maintained.
"""
