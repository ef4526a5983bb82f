"""Slots: each cluster on a machine has its own number, and with it its own addresses, device and control groups."""

import json
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from ipaddress import IPv4Network
from pathlib import Path

from tests.localcluster import cgroups, network, processes
from tests.localcluster.errors import ClusterError
from tests.localcluster.layout import SLOTS, Layout, Network, Spec, read_record, write_record
from tests.localcluster.locks import exclusive

# Not in the state folder: there may be several of those, and one set of addresses. Empty again after a reboot.
_CLAIMS = Path("/run/ebbtide/slots")


def choose(taken: Collection[int], routes: Iterable[IPv4Network]) -> int:
    """Choose the lowest slot that is free and whose addresses no route of this machine covers.

    Raises:
        ClusterError: there is none.
    """
    routes = list(routes)
    for slot in range(SLOTS):
        if slot not in taken and not any(Network(slot).whole.overlaps(route) for route in routes):
            return slot
    raise ClusterError(
        f"all {SLOTS} slots for clusters are taken, or their addresses (10.224.0.0/12) are routed elsewhere: take a "
        "cluster down (python -m tests.localcluster down --name NAME)"
    )


def claim(layout: Layout, spec: Spec) -> Network:
    """Take a slot for a cluster and write down what the cluster is, before anything of it exists.

    Raises:
        ClusterError: no slot is free.
    """
    with _locked():
        taken = {slot for slot, root in _owners().items() if _in_use(slot, root)}
        slot = choose(taken, network.routes())
        (_CLAIMS / f"{slot}.json").write_text(json.dumps({"root": str(layout.root)}))
        # Under the lock: a claim whose cluster has no record would look abandoned to the next one.
        write_record(layout, spec, slot, processes.boot_id())
        return Network(slot)


def held(layout: Layout) -> list[int]:
    """Return the slots that a cluster has."""
    return [slot for slot, root in _owners().items() if root == layout.root]


def held_by_others(layout: Layout) -> list[int]:
    """Return the slots that other clusters have."""
    return [slot for slot, root in _owners().items() if root != layout.root]


def release(layout: Layout) -> None:
    """Give a cluster's slot back."""
    with _locked():
        for slot in held(layout):
            (_CLAIMS / f"{slot}.json").unlink(missing_ok=True)


def _locked() -> AbstractContextManager[None]:
    return exclusive(_CLAIMS / ".lock", "another cluster that is choosing its addresses")


def _owners() -> dict[int, Path]:
    owners = {}
    for file in _CLAIMS.glob("*.json"):
        try:
            owners[int(file.stem)] = Path(json.loads(file.read_text())["root"])
        except (ValueError, KeyError, FileNotFoundError):
            continue
    return owners


def _in_use(slot: int, root: Path) -> bool:
    """Tell a living claim from one whose state folder was deleted by hand."""
    record = read_record(Layout(root))
    return (
        (record is not None and record.network.slot == slot)
        or network.exists(Network(slot))
        or bool(cgroups.existing(Network(slot).cgroup))
    )
