"""What the tests and the demo need of a cluster, whichever way it is made."""

import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.localcluster import binaries
from tests.localcluster.errors import ClusterError


class CommandFailed(subprocess.CalledProcessError, ClusterError):
    """A command ended with an error; its message has what the command said."""

    def __str__(self) -> str:
        said = (self.stderr or self.stdout or "").strip()
        return f"{' '.join(map(str, self.cmd))}: exit status {self.returncode}\n{said}"


@dataclass(frozen=True)
class Status:
    """How a cluster is.

    Attributes:
        problems: what is wrong, in words; empty where it is healthy.
        pids: component to process id, as far as it lives and this machine knows it.
    """

    name: str
    exists: bool
    problems: tuple[str, ...] = ()
    pids: Mapping[str, int] | None = None

    @property
    def healthy(self) -> bool:
        return self.exists and not self.problems


class Cluster(ABC):
    """A running cluster.

    Attributes:
        kubeconfig: a file with an administrator's access, for this cluster only.
        audit_log: one JSON line for each write that the API server answered.
        service_reachable_from_host: whether programs on this machine reach pods and Services at their addresses.
    """

    name: str
    kubeconfig: Path
    audit_log: Path
    service_reachable_from_host: bool

    def kubectl(
        self,
        *args: str,
        input: str | None = None,  # noqa: A002 - as in subprocess
        check: bool = True,
        timeout_s: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl against this cluster.

        Args:
            input: what it reads from stdin.
            check: raise where it fails.

        Raises:
            CommandFailed: it failed and `check` is true.
            subprocess.TimeoutExpired: it took longer than `timeout_s` seconds.
        """
        return run(self.kubectl_command(*args), input=input, check=check, timeout_s=timeout_s)

    def helm(
        self,
        *args: str,
        input: str | None = None,  # noqa: A002 - as in subprocess
        check: bool = True,
        timeout_s: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run helm against this cluster; same arguments and errors as `kubectl`."""
        command = [str(binaries.path("helm")), "--kubeconfig", str(self.kubeconfig), *args]
        # Its plugins, caches and repositories must not be the user's.
        homes = {
            f"HELM_{kind.upper()}_HOME": str(self.kubeconfig.parent / "helm" / kind)
            for kind in ("cache", "config", "data")
        }
        return run(command, input=input, check=check, timeout_s=timeout_s, environment=homes)

    def kubectl_command(self, *args: str) -> list[str]:
        """Return the command line of kubectl for this cluster, for commands that go on (`logs -f`, `port-forward`)."""
        return [str(binaries.path("kubectl")), "--kubeconfig", str(self.kubeconfig), *args]

    @abstractmethod
    def load_image(self, archive: Path) -> None:
        """Load an image archive (`docker save`) into every node; skip those that have it, compared by digest."""

    @abstractmethod
    def node_names(self) -> list[str]:
        """Return the names of the nodes, the first one first."""

    @abstractmethod
    def kill_container(self, container_id: str) -> None:
        """Kill a container's first process, as a crash does.

        Args:
            container_id: as in a pod's status, `containerd://…`.

        Raises:
            ClusterError: no process of it runs.
        """

    @abstractmethod
    def status(self) -> Status:
        """Look how the cluster is."""

    @abstractmethod
    def down(self) -> None:
        """Take the cluster down; nothing of it is left on this machine."""


def run(
    command: list[str],
    *,
    input: str | None = None,  # noqa: A002 - as in subprocess
    check: bool = True,
    timeout_s: float = 60,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it says.

    Raises:
        CommandFailed: it failed and `check` is true.
        subprocess.TimeoutExpired: it took longer than `timeout_s` seconds.
    """
    feed = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
    done = subprocess.run(
        command,
        **feed,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    if check and done.returncode:
        raise CommandFailed(done.returncode, command, done.stdout, done.stderr)
    return done
