"""Grafana dashboards as code; `python -m deploy.dashboards` writes what the chart and compose ship."""
