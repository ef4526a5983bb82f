import http.server
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.localcluster import go
from tests.localcluster.errors import ClusterError

PLATFORM = "linux-amd64"
ROOT = f"golang.org/toolchain@v0.0.1-go{go.FETCHED}.{PLATFORM}"
CONTENT = {"bin/go": "#!/bin/sh\necho fetched\n", "pkg/tool/linux/compile": "", "src/cmd/_go.mod": "module cmd\n"}


class Machine:
    """A machine whose PATH, usual place and proxy of Go are folders of the test."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.usual, self.served, self.cache = (folder / name for name in ("bin", "usual", "proxy", "cache"))
        for one in (self.path, self.usual, self.served / "golang.org/toolchain/@v"):
            one.mkdir(parents=True)
        self.module = folder / "tool"
        self.module.mkdir()
        (self.module / "go.mod").write_text("module tool\n\ngo 1.26.0\n")
        monkeypatch.setenv("PATH", f"{self.path}:/usr/bin:/bin")
        monkeypatch.setattr(go, "USUAL", self.usual / "go")
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        self._monkeypatch = monkeypatch
        go._toolchain.cache_clear()

    @staticmethod
    def install(folder: Path, version: str) -> Path:
        program = folder / "go"
        program.write_text(f"#!/bin/sh\necho go{version}\n")
        program.chmod(0o755)
        return program

    def offer(self) -> None:
        """Put a toolchain on the proxy, and trust its hash."""
        file = self.served / f"golang.org/toolchain/@v/v0.0.1-go{go.FETCHED}.{PLATFORM}.zip"
        with zipfile.ZipFile(file, "w") as archive:
            for name, text in CONTENT.items():
                archive.writestr(f"{ROOT}/{name}", text)
            self._monkeypatch.setitem(go.SUMS, PLATFORM, go.module_hash(archive))

    def go(self) -> Path:
        return go.program(self.module, self.cache)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine(tmp_path, monkeypatch)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(machine.served))) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        monkeypatch.setenv("GOPROXY", f"http://127.0.0.1:{server.server_port},direct")
        yield machine
        server.shutdown()
        serving.join()


def test_takes_the_go_on_path(machine: Machine) -> None:
    at_hand = machine.install(machine.path, "1.26.0")
    machine.install(machine.usual, "1.27.0")
    assert machine.go() == at_hand


def test_takes_the_go_in_its_usual_place_where_path_has_none_or_an_old_one(machine: Machine) -> None:
    usual = machine.install(machine.usual, "1.27rc1")
    assert machine.go() == usual
    machine.install(machine.path, "1.19.8")
    assert machine.go() == usual


def test_fetches_go_once_where_there_is_none(machine: Machine) -> None:
    machine.offer()
    program = machine.go()
    assert program.read_text() == CONTENT["bin/go"]
    assert program.stat().st_mode & 0o111
    assert (program.parent.parent / "src/cmd/go.mod").read_text() == "module cmd\n"
    for file in machine.served.rglob("*.zip"):
        file.unlink()
    go._toolchain.cache_clear()
    assert machine.go() == program


def test_a_toolchain_of_another_hash_is_not_used(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.offer()
    monkeypatch.setitem(go.SUMS, PLATFORM, "h1:another")
    with pytest.raises(ClusterError, match=r"has the hash h1:.*, not h1:another"):
        machine.go()
    assert [entry.name for entry in machine.cache.iterdir()] == [".go.lock"]


def test_a_missing_go_that_cannot_be_fetched_is_named_with_its_fix(machine: Machine) -> None:
    with pytest.raises(
        ClusterError, match=r"there is no `go` on PATH, and .* could not be fetched .*install Go 1\.26\.0"
    ):
        machine.go()


def test_an_old_go_that_cannot_be_replaced_is_named_with_its_fix(machine: Machine) -> None:
    machine.install(machine.path, "1.19.8")
    with pytest.raises(ClusterError, match=r"is Go 1\.19\.8, and .*install Go 1\.26\.0 or newer"):
        machine.go()


def test_a_platform_without_a_known_hash_is_told_so(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(ClusterError, match="hash is not known for linux-riscv64"):
        machine.go()


def test_hashes_a_module_as_the_checksum_database_does(tmp_path: Path) -> None:
    # printf '%s  %s\n' $(printf one | sha256sum | cut -c-64) m@v1/a $(printf two | sha256sum | cut -c-64) m@v1/b/c |
    #     sha256sum | xxd -r -p | base64
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("m@v1/b/c", "two")
        archive.writestr("m@v1/a", "one")
        assert go.module_hash(archive) == "h1:Deh2r7heFirc/1FiAtNL6PE/h0o78SV8ivRN/XoDN/A="


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1.26", (1, 26)), ("1.26.8", (1, 26, 8)), ("1.27rc1", (1, 27)), ("devel", ()), ("1.9 X:boring", (1, 9))],
)
def test_reads_versions_of_go(text: str, expected: tuple[int, ...]) -> None:
    assert go.version(text) == expected


def test_versions_compare_by_number() -> None:
    assert go.version("1.9") < go.version("1.26.0") < go.version("1.26.8") < go.version("1.100")
