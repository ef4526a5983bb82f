"""Tell a Prometheus that has no discovery of pods which ones there are, over HTTP.

Debian's build has no `kubernetes_sd_configs`. The labels are named as that would name them, so the relabelling rules
are the usual ones. It runs beside Prometheus, as a file of its own and with the standard library alone, and asks the
API server anew for each request: it has no state to lose.
Format: https://prometheus.io/docs/prometheus/latest/http_sd/.
"""

from __future__ import annotations

import json
import logging
import re
import ssl
import urllib.request
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ADDRESS = ("127.0.0.1", 8000)
API = "https://kubernetes.default.svc"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_S = 4.0

logger = logging.getLogger("discovery")


def target_groups(pods: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one target group for each pod that has an address, from pods as the API server lists them."""
    return [{"targets": [pod["status"]["podIP"]], "labels": _labels(pod)} for pod in pods if pod["status"].get("podIP")]


def _labels(pod: Mapping[str, Any]) -> dict[str, str]:
    metadata, status = pod["metadata"], pod["status"]
    labels = {
        "__meta_kubernetes_namespace": metadata["namespace"],
        "__meta_kubernetes_pod_name": metadata["name"],
        "__meta_kubernetes_pod_ip": status["podIP"],
        "__meta_kubernetes_pod_phase": status.get("phase", "Unknown"),
    }
    for name, value in metadata.get("annotations", {}).items():
        labels["__meta_kubernetes_pod_annotation_" + re.sub(r"\W", "_", name, flags=re.ASCII)] = value
    return labels


def list_pods() -> list[Mapping[str, Any]]:
    """Ask the API server for all pods, as the ServiceAccount of this pod.

    Raises:
        OSError: It cannot be reached, or refused.
    """
    token = (ACCOUNT / "token").read_text().strip()
    trust = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    url = f"{API}/api/v1/pods"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})  # noqa: S310 (https, above)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=trust) as answer:  # noqa: S310 (https, above)
        pods: list[Mapping[str, Any]] = json.load(answer)["items"]
    return pods


class Discovery(BaseHTTPRequestHandler):
    """Answer each request with the pods of this moment; after an error Prometheus keeps the targets that it has."""

    def do_GET(self) -> None:
        """Answer with target groups."""
        try:
            status, document = 200, target_groups(list_pods())
        except OSError as error:
            logger.warning("pods: %s", error)
            status, document = 503, []
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing of requests that are answered."""


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    ThreadingHTTPServer(ADDRESS, Discovery).serve_forever()
