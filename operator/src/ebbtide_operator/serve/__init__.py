"""HTTP: what the API server, pods, probes and Prometheus ask."""
