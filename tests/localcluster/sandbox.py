"""A sandbox: the namespaces that a node or the control plane lives in.

Its first process holds a process, mount, network, host name and IPC namespace. When that one process is killed, the
kernel kills every other one in it (containers and their shims too), and all mounts, devices and packet filter rules are
gone: that is what makes taking a cluster down certain, whatever state a crash left it in.
"""

from pathlib import Path

from tests.localcluster import binaries, pause, processes
from tests.localcluster.layout import Layout, state_root
from tests.localcluster.processes import Process

# Where programs write by default: each sandbox sees folders of its own there.
_OWN = {"/run": "run", "/tmp": "tmp", "/var/lib": "lib", "/var/log": "log"}
# Settings of the whole machine that a kubelet changes: it gets files to write to instead.
_COVERED = (
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/kernel/keys/root_maxkeys",
    "/proc/sys/kernel/keys/root_maxbytes",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
)
_FORWARDING = {"/proc/sys/net/ipv4/ip_forward": "1"}


def environment(layout: Layout) -> dict[str, str]:
    """Return the environment of every process in a sandbox: little, and the mark that makes it ours."""
    own = binaries.path("containerd").parent  # where containerd looks for its shim
    return {
        "PATH": f"{own}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/run",
        processes.MARK: str(layout.root),
    }


def component(name: str) -> str:
    """Name the first process of a sandbox among the components."""
    return f"sandbox/{name}"


def create(layout: Layout, name: str) -> Process:
    """Make a sandbox and its folders.

    Raises:
        ClusterError: the kernel or the container we are in does not allow it.
    """
    folder = layout.sandbox(name)
    covers = folder / "sysctl"
    for part in (*_OWN.values(), covers.name, "etc"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "tmp").chmod(0o1777)
    layout.logs.mkdir(exist_ok=True)
    kept = {state_root(), binaries.cache_root()}
    request = {
        "action": "create",
        "hostname": name,
        "argv": [str(pause.executable()), f"{layout.root}/{name}"],
        "env": environment(layout),
        "log": str(layout.logs / f"sandbox-{name}.log"),
        "binds": {target: str(folder / part) for target, part in _OWN.items()},
        "keep": sorted(str(path.resolve()) for path in kept),
        "covers": {path: str(covers / Path(path).name) for path in _COVERED},
        "sysctls": _FORWARDING,
    }
    return processes.launch(component(name), request, layout.processes)


def pids(layout: Layout) -> dict[str, Process]:
    """Return the first process of each sandbox, by sandbox."""
    prefix = component("")
    return {
        name.removeprefix(prefix): process
        for name, process in processes.recorded(layout.processes).items()
        if name.startswith(prefix)
    }
