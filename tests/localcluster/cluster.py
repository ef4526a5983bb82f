"""What tests and demo ask of a cluster, whichever kind it is."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from tests.localcluster import binaries
from tests.localcluster.errors import ClusterError


class Cluster(ABC):
    """A running Kubernetes."""

    name: str
    kubeconfig: Path

    @property
    @abstractmethod
    def audit_log(self) -> Path | None:
        """JSON lines, one for each write that the API server answered; None where there is none."""

    @property
    @abstractmethod
    def pids(self) -> Mapping[str, int]:
        """Processes by component, as this host counts them; empty where they are not this host's."""

    @property
    @abstractmethod
    def service_reachable_from_host(self) -> bool:
        """Whether this host reaches pods and Services by their addresses."""

    @abstractmethod
    def load_image(self, archive: Path) -> None:
        """Load a docker-archive into every node; one that was loaded before is skipped."""

    @abstractmethod
    def container_pid(self, container_id: str) -> int:
        """Return this host's id of a container's first process (`containerd://…` as in a pod's status)."""

    @abstractmethod
    def down(self) -> None:
        """Remove the cluster and all that belongs to it."""

    def node_names(self) -> list[str]:
        """Return the names of the nodes."""
        return self.kubectl("get", "nodes", "-o", "jsonpath={.items[*].metadata.name}").stdout.split()

    def kubectl_command(self, *args: str) -> list[str]:
        """Return the command line of a kubectl call, for callers that run it themselves."""
        return [str(binaries.path("kubectl")), "--kubeconfig", str(self.kubeconfig), *args]

    def kubectl(
        self,
        *args: str,
        input: str | None = None,  # noqa: A002 (the name that subprocess has for it)
        check: bool = True,
        timeout_s: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl.

        Raises:
            ClusterError: It failed and `check` is set; the message has what it said.
            subprocess.TimeoutExpired: It took longer than `timeout_s`.
        """
        return _run(self.kubectl_command(*args), input, check, timeout_s)

    def helm(
        self,
        *args: str,
        input: str | None = None,  # noqa: A002 (the name that subprocess has for it)
        check: bool = True,
        timeout_s: float = 180,
    ) -> subprocess.CompletedProcess[str]:
        """Run helm; raises as `kubectl` does."""
        command = [str(binaries.path("helm")), "--kubeconfig", str(self.kubeconfig), *args]
        return _run(command, input, check, timeout_s)


def _run(command: list[str], text: str | None, check: bool, timeout_s: float) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=timeout_s)
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise ClusterError(f"{' '.join([Path(command[0]).name, *command[3:]])} failed: {said}")
    return done
