"""One real etcd process on loopback that a test may kill, freeze and start again."""

import contextlib
import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path


def program() -> str:
    """Return etcd's executable: EBBTIDE_ETCD, or the one that the local cluster uses (compiled once where missing)."""
    named = os.environ.get("EBBTIDE_ETCD")
    if named:
        return named
    from tests.localcluster import binaries

    return str(binaries.path("etcd"))


def control_program() -> str:
    """Return etcdctl's executable: EBBTIDE_ETCDCTL, or the one beside etcd."""
    return os.environ.get("EBBTIDE_ETCDCTL") or str(Path(program()).with_name("etcdctl"))


BEFORE_3_5 = {
    "--watch-progress-notify-interval": "--experimental-watch-progress-notify-interval",
    "--unsafe-no-fsync": "",
}
"""What flags are called there; empty: there is none."""


def fitting(version: tuple[int, int], flags: Iterable[str]) -> list[str]:
    """Return flags as an etcd of a version (major, minor) knows them, without those that it does not."""
    if version >= (3, 5):
        return list(flags)
    parted = [flag.partition("=") for flag in flags]
    return [BEFORE_3_5.get(name, name) + sign + value for name, sign, value in parted if BEFORE_3_5.get(name, name)]


@functools.cache
def version_of(path: str) -> tuple[int, int]:
    """Return what an executable of etcd says of itself: major, minor."""
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"etcd Version: (\d+)\.(\d+)", said)
    assert found is not None, said
    return int(found[1]), int(found[2])


def may_mount() -> bool:
    """Say whether this process may mount, which root may where nobody took that away."""
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return tried.returncode == 0


_given: set[int] = set()


def free_port() -> int:
    """Return a port that nobody listens on, and that was not returned before: its taker may not listen yet."""
    while True:
        with contextlib.closing(socket.socket()) as sock:
            sock.bind(("127.0.0.1", 0))
            port = int(sock.getsockname()[1])
        if port not in _given:
            _given.add(port)
            return port


class Member:
    """An etcd with a data folder of its own.

    Args:
        flags: Further flags.
        scheme: `https` needs certificates in the flags.
        name: Its name among its peers.
        peers: URL of every member by name, its own among them; None: it is alone.
    """

    def __init__(
        self, *flags: str, scheme: str = "http", name: str = "test", peers: dict[str, str] | None = None
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ebbtide-etcd-"))
        self.port = free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._metrics = free_port()
        peers = peers or {name: f"http://127.0.0.1:{free_port()}"}
        executable = program()
        options = [
            f"--name={name}",
            f"--listen-client-urls={self.url}",
            f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls={peers[name]}",
            f"--initial-advertise-peer-urls={peers[name]}",
            f"--initial-cluster={','.join(f'{peer}={url}' for peer, url in peers.items())}",
            f"--listen-metrics-urls=http://127.0.0.1:{self._metrics}",
            "--log-level=warn",
            # A loopback store that loses its machine may lose its data: tests restart processes only.
            "--unsafe-no-fsync",
            *flags,
        ]
        self._command = [executable, *fitting(version_of(executable), options)]
        self._process: subprocess.Popen[bytes] | None = None
        self._log = (self.folder / "log").open("ab")
        self._disk: Path | None = None

    def start(self) -> None:
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start it without waiting for it: members of a cluster are healthy together."""
        command = [*self._command, f"--data-dir={self.folder / 'data'}"]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)

    def wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + 30
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"etcd does not start:\n{(self.folder / 'log').read_text()[-3000:]}")
            time.sleep(0.02)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """Kill it as a lost node does; wait until it is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def confine(self, mib: int) -> None:
        """Give its data a disk of their own, of so many MiB, before the first start.

        Raises:
            subprocess.CalledProcessError: This process may not mount.
        """
        data = self.folder / "data"
        data.mkdir(mode=0o700)
        command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "ebbtide-etcd", str(data)]
        subprocess.run(command, check=True, capture_output=True)
        self._disk = data

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        """Leave no room on the disk that it was confined to while the block runs."""
        assert self._disk is not None
        ballast = self._disk / "ballast"
        try:
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(65536))
            yield
        finally:
            ballast.unlink()

    def wipe(self, *, token: str = "") -> None:
        """Lose the data, as an emptyDir does; only while it is killed.

        Args:
            token: Begin as another cluster, as the chart's etcd does; empty: as the same one again.
        """
        shutil.rmtree(self.folder / "data")
        if token:
            self._command.append(f"--initial-cluster-token={token}")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def leads(self) -> bool:
        """Whether it is the leader of its cluster."""
        url = f"http://127.0.0.1:{self._metrics}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return b"\netcd_server_is_leader 1\n" in answer.read()

    def close(self) -> None:
        if self.running:
            self.thaw()
            self.kill()
        self._log.close()
        if self._disk is not None:
            subprocess.run(["umount", str(self._disk)], check=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def three(*flags: str) -> list[Member]:
    """Return the members of a cluster; they are not started."""
    peers = {name: f"http://127.0.0.1:{free_port()}" for name in ("a", "b", "c")}
    return [Member(*flags, name=name, peers=peers) for name in peers]
