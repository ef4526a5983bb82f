import pytest

from tests.localcluster import packages
from tests.localcluster.errors import ClusterError

EVERYTHING = {
    *("runc", "iptables", "iptables-restore", "ip", "nsenter", "mount", "umount", "modprobe", "gcc"),
    "/usr/include/stdlib.h",
    *(f"/usr/lib/cni/{plugin}" for plugin in ("ptp", "host-local", "portmap", "loopback")),
}


def _missing(present: set[str]) -> list[str]:
    return packages.missing(packages.NODE, present.__contains__)


def test_nothing_is_missing_where_all_programs_are() -> None:
    assert _missing(EVERYTHING) == []


@pytest.mark.parametrize(
    ("without", "package"),
    [
        ("runc", "runc"),
        ("ip", "iproute2"),
        ("iptables-restore", "iptables"),
        ("/usr/include/stdlib.h", "libc6-dev"),
        ("/usr/lib/cni/ptp", "containernetworking-plugins"),
    ],
)
def test_names_the_package_of_a_missing_program(without: str, package: str) -> None:
    assert _missing(EVERYTHING - {without}) == [package]


def test_network_plugins_may_lie_where_upstream_puts_them() -> None:
    elsewhere = {item.replace("/usr/lib/cni", "/opt/cni/bin") for item in EVERYTHING}
    assert _missing(elsewhere) == []


def test_a_package_that_is_not_listed_is_known_by_its_program() -> None:
    assert packages.missing(["buildah"], {"buildah"}.__contains__) == []
    assert packages.missing(["buildah"], set[str]().__contains__) == ["buildah"]


def test_names_what_to_install_where_it_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(packages, "missing", lambda names: ["runc", "gcc"])
    with pytest.raises(ClusterError, match="runc gcc; install them"):
        packages.ensure(packages.NODE)
