import json
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.localcluster import cgroups, network, slots
from tests.localcluster.errors import ClusterError
from tests.localcluster.layout import SLOTS, Layout, Network, Spec, read_record


@given(st.sets(st.integers(0, SLOTS - 1), max_size=SLOTS - 1))
def test_chooses_the_lowest_slot_that_is_free(taken: set[int]) -> None:
    chosen = slots.choose(taken, [])
    assert chosen not in taken
    assert all(lower in taken for lower in range(chosen))


def test_passes_over_slots_whose_addresses_are_routed_elsewhere() -> None:
    routes = [Network(0).whole, IPv4Network("10.225.7.0/24"), IPv4Network("192.0.2.0/24")]
    assert slots.choose(set(), routes) == 2


@pytest.mark.parametrize(
    ("taken", "routes"), [(set(range(SLOTS)), []), (set(), [IPv4Network("10.0.0.0/8")])], ids=["taken", "routed"]
)
def test_says_what_to_do_when_no_slot_is_left(taken: set[int], routes: list[IPv4Network]) -> None:
    with pytest.raises(ClusterError, match="take a cluster down"):
        slots.choose(taken, routes)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without clusters, devices and control groups."""
    monkeypatch.setattr(slots, "_CLAIMS", tmp_path / "claims")
    monkeypatch.setattr(network, "exists", lambda _: False)
    monkeypatch.setattr(network, "routes", list)
    monkeypatch.setattr(cgroups, "existing", lambda cgroup: [])
    return tmp_path


def _layout(machine: Path, name: str) -> Layout:
    (machine / name).mkdir()
    return Layout(machine / name)


def test_two_clusters_get_two_slots_and_a_record_each(machine: Path) -> None:
    first, second = _layout(machine, "a"), _layout(machine, "b")
    assert slots.claim(first, Spec("a")).slot == 0
    assert slots.claim(second, Spec("b")).slot == 1
    for layout, slot in ((first, 0), (second, 1)):
        assert slots.held(layout) == [slot]
        record = read_record(layout)
        assert record is not None
        assert record.network.slot == slot
    assert slots.held_by_others(first) == [1]


def test_a_released_slot_is_given_out_again(machine: Path) -> None:
    first, second = _layout(machine, "a"), _layout(machine, "b")
    slots.claim(first, Spec("a"))
    slots.release(first)
    assert slots.held(first) == []
    assert slots.claim(second, Spec("b")).slot == 0


def test_a_claim_whose_state_folder_is_gone_does_not_count(machine: Path) -> None:
    first, second = _layout(machine, "a"), _layout(machine, "b")
    slots.claim(first, Spec("a"))
    first.record.unlink()
    assert slots.claim(second, Spec("b")).slot == 0
    assert slots.held(first) == []


def test_a_claim_counts_while_its_device_is_there(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = _layout(machine, "a"), _layout(machine, "b")
    slots.claim(first, Spec("a"))
    first.record.unlink()
    monkeypatch.setattr(network, "exists", lambda asked: asked.slot == 0)
    assert slots.claim(second, Spec("b")).slot == 1


def test_a_broken_claim_is_passed_over(machine: Path) -> None:
    (machine / "claims").mkdir()
    (machine / "claims" / "3.json").write_text("{")
    (machine / "claims" / "4.json").write_text(json.dumps({"root": str(machine / "a")}))
    assert slots.held(Layout(machine / "a")) == [4]
