from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.localcluster import layout
from tests.localcluster.errors import ClusterError
from tests.localcluster.layout import SLOTS, Layout, Network, Spec

slots = st.integers(0, SLOTS - 1)


@given(slots, slots)
def test_clusters_share_no_address_device_or_control_group(one: int, other: int) -> None:
    first, second = Network(one), Network(other)
    same = one == other
    assert first.whole.overlaps(second.whole) is same
    assert (first.device == second.device) is same
    assert (first.cgroup == second.cgroup) is same


@given(slots)
def test_the_parts_of_a_network_do_not_overlap(slot: int) -> None:
    network = Network(slot)
    parts = [network.link, network.nodes, network.services, *(network.pods_of(index) for index in range(1, 9))]
    for at, part in enumerate(parts):
        assert part.subnet_of(network.whole)
        assert not any(part.overlaps(other) for other in parts[at + 1 :])
    assert all(network.pods_of(index).subnet_of(network.pods) for index in range(1, 9))


@given(slots)
def test_every_address_lies_in_its_part(slot: int) -> None:
    network = Network(slot)
    assert {network.host, network.uplink} == set(network.link.hosts())
    nodes = [network.control_plane, *(network.node(index) for index in range(1, 9))]
    assert len(set(nodes)) == 9
    assert all(address in network.nodes for address in nodes)
    assert network.kubernetes_service == next(network.services.hosts())


def test_a_node_has_addresses_for_all_pods_that_its_kubelet_takes() -> None:
    assert Network(0).pods_of(1).num_addresses - 2 >= 500


@pytest.mark.parametrize("name", ["", "../etc", "a/b", "Upper", "-a", "a-", "a" * 31, "a b"])
def test_refuses_names_that_lead_out_of_the_state_folder_or_into_no_label(name: str) -> None:
    with pytest.raises(ClusterError, match="lower-case letters"):
        Spec(name)
    with pytest.raises(ClusterError, match="lower-case letters"):
        layout.layout_of(name)


@pytest.mark.parametrize("name", ["a", "ebbtide-test", "a" * 30, "0"])
def test_takes_plain_names(name: str) -> None:
    assert Spec(name).name == name


@pytest.mark.parametrize(("options", "said"), [({"nodes": 0}, "nodes=0"), ({"nodes": 9}, "nodes=9")])
def test_refuses_impossible_numbers_of_nodes(options: dict[str, int], said: str) -> None:
    with pytest.raises(ClusterError, match=said):
        Spec("a", **options)


def test_refuses_a_rate_of_nothing() -> None:
    with pytest.raises(ClusterError, match="controller_manager_qps=0"):
        Spec("a", controller_manager_qps=0)


def test_refuses_a_state_folder_that_is_too_deep_for_sockets(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="EBBTIDE_STATE"):
        Layout(tmp_path / ("x" * 100)).check(Spec("a"))
    Layout(Path("/var/lib/ebbtide/a")).check(Spec("a"))


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    place = Layout(tmp_path)
    spec = Spec("a", 3, 50.0)
    layout.write_record(place, spec, 5, "boot")
    assert layout.read_record(place) == layout.Record(spec, Network(5), "boot")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"spec": {"name": "a"}}', '{"spec": {"nom": 1}, "slot": 0, "boot_id": ""}']
)
def test_a_broken_record_counts_as_none(tmp_path: Path, text: str) -> None:
    place = Layout(tmp_path)
    place.record.write_text(text)
    assert layout.read_record(place) is None


def test_the_state_folder_is_at_home_for_those_who_are_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EBBTIDE_STATE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/home/someone/state")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert layout.state_root() == Path("/home/someone/state/ebbtide")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert layout.state_root() == Path("/var/lib/ebbtide")
    monkeypatch.setenv("EBBTIDE_STATE", "/elsewhere")
    assert layout.state_root() == Path("/elsewhere")
