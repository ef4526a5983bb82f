"""The local cluster: real Kubernetes as processes of this machine, without a container engine."""

import os
import signal
from pathlib import Path

from tests.localcluster import archives, binaries, bringup, capabilities, locks, packages, pause, processes, teardown
from tests.localcluster.cluster import Cluster, Status, run
from tests.localcluster.errors import ClusterError
from tests.localcluster.layout import Layout, Record, Spec, layout_of, read_record
from tests.localcluster.processes import Process
from tests.localcluster.progress import say, step


class LocalCluster(Cluster):
    """A cluster whose processes run on this machine, each node in namespaces of its own."""

    service_reachable_from_host = True

    def __init__(self, layout: Layout, record: Record) -> None:
        self.name = record.spec.name
        self.kubeconfig = layout.kubeconfig
        self.audit_log = layout.audit_log
        self._layout = layout
        self._record = record

    @property
    def host_address(self) -> str:
        """The address at which pods and the API server reach programs on this machine."""
        return str(self._record.network.host)

    def node_names(self) -> list[str]:
        return list(self._record.spec.node_names)

    @property
    def pids(self) -> dict[str, int]:
        """Component (`kube-apiserver`, `kubelet/node-1`) to process id, of those that run."""
        return {name: process.pid for name, process in self._processes().items() if process.alive()}

    def _processes(self) -> dict[str, Process]:
        if self._record.boot_id != processes.boot_id():
            return {}
        return processes.recorded(self._layout.processes)

    def load_image(self, archive: Path) -> None:
        images = archives.read(archive)
        for node in self.node_names():
            listing = self._listing(node)
            if not all(archives.is_present(image, listing) for image in images):
                with step(f"loading {', '.join(name for image in images for name in image.names)} into {node}"):
                    bringup.import_image(self._layout, node, archive)

    def _listing(self, node: str) -> str:
        return run([*bringup.ctr(self._layout, node), "images", "list"]).stdout

    def kill_container(self, container_id: str) -> None:
        os.kill(self.container_pid(container_id), signal.SIGKILL)

    def container_pid(self, container_id: str) -> int:
        """Return the process id on this machine of a container's first process.

        Args:
            container_id: as in a pod's status, `containerd://…`.

        Raises:
            ClusterError: none runs.
        """
        identifier = container_id.rpartition("/")[2]
        if len(identifier) < 32:  # too short to be unique in what is searched
            raise ClusterError(f"container id {container_id!r}: expected one like containerd://<64 hex digits>")
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                member = identifier in (entry / "cgroup").read_text()
            except OSError:  # it ended meanwhile
                continue
            if member and (start := processes.start_time(int(entry.name))) is not None:
                found.append((start, int(entry.name)))
        if not found:
            raise ClusterError(f"no process of container {container_id} runs on this machine")
        return min(found)[1]

    def restart(self, component: str) -> int:
        """Kill a component where it lives, start it again as it was, and return its process id.

        Raises:
            ClusterError: there is no such component; the message lists those that there are.
        """
        known = self._processes()
        if component not in known or component.startswith("sandbox/"):
            names = ", ".join(name for name in known if not name.startswith("sandbox/"))
            raise ClusterError(f"no component {component!r} to restart; there are {names}")
        process = known[component]
        processes.kill({process.pid: process.start})
        return processes.launch(component, process.request, self._layout.processes).pid

    def status(self) -> Status:
        known = self._processes()
        problems = [f"{name} does not run" for name, process in known.items() if not process.alive()]
        if not known:
            problems.append("no process of it is known (the machine was restarted, or `up` was interrupted)")
        elif not problems:
            problems = self._answers()
        return Status(self.name, exists=True, problems=tuple(problems), pids=self.pids)

    def _answers(self) -> list[str]:
        if not bringup.api_ready(self._layout, self._record.network):
            return ["the API server is not ready"]
        ready = bringup.ready_nodes(self._layout)
        return [f"{node} is not ready" for node in self.node_names() if node not in ready]

    def down(self) -> None:
        down(self.name)


def prepare() -> None:
    """Install and compile what a cluster is made of: minutes the first time, nothing after.

    Raises:
        ClusterError: this machine can't run a cluster; the message says what is missing.
    """
    capabilities.check()
    packages.ensure(packages.NODE)
    binaries.build()
    pause.executable()


def up(spec: Spec) -> LocalCluster:
    """Start a cluster, or return the healthy one of that name; an unhealthy one is taken down first.

    Raises:
        ClusterError: this machine can't run it, it runs with another specification, or a part did not start.
    """
    layout = layout_of(spec.name)
    layout.check(spec)
    prepare()
    with locks.of_cluster(layout):
        present = attach(spec.name)
        if present is not None and (status := present.status()).healthy:
            _check_same(spec, present)
            say(f"cluster {spec.name} runs already")
            return present
        if teardown.leftovers(layout):
            reason = "; ".join(status.problems) if present is not None else "an interrupted start"
            with step(f"removing what is left of cluster {spec.name} ({reason})"):
                teardown.tear_down(layout)
        try:
            bringup.bring_up(layout, spec)
        except BaseException:
            teardown.tear_down(layout)
            raise
    started = attach(spec.name)
    if started is None:
        raise ClusterError(f"cluster {spec.name} was taken down by another program as soon as it was up")
    say(f"cluster {spec.name} is up; KUBECONFIG={started.kubeconfig}")
    return started


def attach(name: str) -> LocalCluster | None:
    """Return the cluster of that name, healthy or not; None where there is none."""
    layout = layout_of(name)
    record = read_record(layout)
    return None if record is None else LocalCluster(layout, record)


def down(name: str) -> None:
    """Take a cluster down, whatever state it is in; nothing happens where there is none.

    Raises:
        ClusterError: something of it could not be removed.
    """
    layout = layout_of(name)
    with locks.of_cluster(layout, remove=True):
        if not teardown.leftovers(layout):
            say(f"there is no cluster {name}")
            return
        with step(f"taking cluster {name} down"):
            teardown.tear_down(layout)
        say("nothing is left of it: no process, mount, control group, network device, route or file")


def _check_same(spec: Spec, present: LocalCluster) -> None:
    if present._record.spec != spec:
        raise ClusterError(
            f"cluster {spec.name} runs as {present._record.spec}, not as {spec}: take it down first "
            f"(python -m tests.localcluster down --name {spec.name}) or choose another name"
        )
