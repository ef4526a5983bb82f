"""Grafana dashboards: made by `generate`, held to rules by `lint`, tried on a real Prometheus by `verify`."""
