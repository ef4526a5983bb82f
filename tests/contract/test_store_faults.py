"""One fault suite for both ways to etcd: nothing lost, nothing told twice, and soon back.

`EBBTIDE_FAULT_ROUNDS` says how often each fault comes (1); `make test-store` takes more and prints the table.
"""

import os
from typing import Any

import pytest

from ebbtide_operator.store.etcd3 import Etcd3
from ebbtide_operator.store.gateway import Gateway
from tests.contract.faults import FAULTS, INACTIVITY_S, NO_ROOM, SILENT, TIMEOUT_S, count
from tests.contract.member import may_mount

pytestmark = pytest.mark.etcd
ROUNDS = int(os.environ.get("EBBTIDE_FAULT_ROUNDS", "1"))
# What test_watch_faults tries as well takes time only where it is to be counted.
TRIED = FAULTS if ROUNDS > 1 else FAULTS.keys() - {SILENT}


@pytest.mark.timeout(60 + 20 * ROUNDS)
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault in TRIED])
@pytest.mark.parametrize("adapter", [Gateway, Etcd3])
async def test_a_fault_loses_nothing_and_repeats_nothing(adapter: Any, fault: str, record_property: Any) -> None:
    if fault == NO_ROOM and not may_mount():
        pytest.skip("a disk of its own has to be mounted, which this process may not")
    counted = await count(adapter, fault, ROUNDS)
    record_property("fault", counted.row)
    assert counted.rounds == ROUNDS
    assert counted.seen == counted.written > 0
    assert counted.lost == 0
    assert counted.duplicates == 0
    # A bound for a busy machine; docs/store.md has what was measured.
    assert counted.quantile(0.5) < (INACTIVITY_S + TIMEOUT_S if fault == SILENT else 0) + 3.0
