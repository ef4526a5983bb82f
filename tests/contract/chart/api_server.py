"""A real API server on an etcd of its own: no nodes and no controllers, so nothing runs, but everything is checked."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from charts.readme import CHART
from tests.contract.chart import rendering
from tests.contract.member import Member, free_port
from tests.localcluster import binaries
from tests.localcluster.certificates import signing_key

TOKEN = "administrator"


class ApiServer:
    """Runs from `start` to `close`, which removes all that it wrote."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ebbtide-apiserver-"))
        self.kubeconfig = self.folder / "kubeconfig"
        self._etcd = Member()
        self._url = f"https://127.0.0.1:{free_port()}"
        self._log = (self.folder / "log").open("wb")
        self._process: subprocess.Popen[bytes] | None = None
        # Its certificate is made by itself as it starts.
        self._tls = ssl._create_unverified_context()

    def start(self) -> None:
        self._etcd.start()
        private, public = signing_key()
        (self.folder / "sa.key").write_bytes(private)
        (self.folder / "sa.pub").write_bytes(public)
        (self.folder / "tokens.csv").write_text(f'{TOKEN},administrator,1,"system:masters"\n')
        self.kubeconfig.write_text(yaml.safe_dump(self._kubeconfig()))
        self._process = subprocess.Popen(
            [
                str(binaries.path("kube-apiserver")),
                f"--etcd-servers={self._etcd.url}",
                f"--secure-port={self._url.rpartition(':')[2]}",
                "--bind-address=127.0.0.1",
                # Loopback is refused here; with no endpoint reconciler nobody is told.
                "--advertise-address=192.0.2.1",
                "--endpoint-reconciler-type=none",
                f"--cert-dir={self.folder}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={self.folder / 'sa.pub'}",
                f"--service-account-signing-key-file={self.folder / 'sa.key'}",
                "--service-cluster-ip-range=10.96.0.0/16",
                f"--token-auth-file={self.folder / 'tokens.csv'}",
                "--authorization-mode=RBAC",
            ],
            stdout=self._log,
            stderr=self._log,
        )
        deadline = time.monotonic() + 60
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the API server does not start:\n{(self.folder / 'log').read_text()[-3000:]}")
            time.sleep(0.1)

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        self._log.close()
        self._etcd.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, user: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Ask as administrator, or as a user with all rights; return the HTTP status and the answer."""
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        if method == "PATCH":
            headers["Content-Type"] = "application/merge-patch+json"
        if user is not None:
            headers |= {"Impersonate-User": user, "Impersonate-Group": "system:masters"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30, context=self._tls) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def get(self, path: str) -> dict[str, Any]:
        status, answer = self.request("GET", path)
        assert status == 200, answer
        return answer

    def kubectl(self, *arguments: str, input: str | None = None, check: bool = True) -> str:  # noqa: A002 - as in subprocess
        """Return what kubectl prints, on both streams."""
        command = [str(binaries.path("kubectl")), "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(
            command, input=input, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert done.returncode == 0 or not check, f"{' '.join(command)}\n{done.stdout}"
        return done.stdout

    def helm(
        self, *arguments: str, values: Mapping[str, Any] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return rendering.helm(*arguments, "--kubeconfig", str(self.kubeconfig), values=values, check=check)

    def install(
        self, release: str, namespace: str, *flags: str, values: Mapping[str, Any] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Install the chart, or upgrade the release that is there."""
        where = ("--namespace", namespace, "--create-namespace")
        return self.helm("upgrade", "--install", release, str(CHART), *where, *flags, values=values, check=check)

    def uninstall(self, release: str, namespace: str) -> str:
        return self.helm("uninstall", release, "--namespace", namespace).stdout

    def _ready(self) -> bool:
        request = urllib.request.Request(f"{self._url}/readyz", headers={"Authorization": f"Bearer {TOKEN}"})
        try:
            with urllib.request.urlopen(request, timeout=5, context=self._tls) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _kubeconfig(self) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "a", "cluster": {"server": self._url, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "a", "user": {"token": TOKEN}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "current-context": "a",
        }
