"""Nothing grows in a process that drains and serves again, over and over; `make soak` goes on for five minutes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ebbtide
from tests.bench.soak import KEPT, MOST_GROWTH, PARTS, Kept, Samples

PROGRAM = Path(__file__).parents[1] / "bench/soak.py"


@pytest.mark.timeout(90)
def test_a_process_that_drains_and_serves_again_does_not_grow() -> None:
    command = [sys.executable, str(PROGRAM), "--seconds", "20", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=80, check=False)
    found = json.loads(ran.stdout)
    assert found["grown"] == {}
    assert ran.returncode == 0, found
    assert found["cycles"] > 50
    assert found["containers"] > 50


def test_a_container_that_grows_is_found() -> None:
    runtime = ebbtide.Runtime(ebbtide.Settings(admin_port=0), watchdog=False)
    samples = Samples()
    for passed in (0.0, 0.4, 0.7):
        samples.take([runtime], passed)
    assert samples.grown() == {}
    runtime._registry.abandoned.update(range(10))
    samples.take([runtime], 0.9)
    assert samples.grown() == {"Registry.abandoned": (0, 10)}


def test_memory_that_grows_all_the_time_is_told_from_a_table_that_is_resized_once() -> None:
    leaking, resized = Samples(), Samples()
    for part in range(PARTS):
        for samples, value in ((leaking, 1000 * part), (resized, 1000 * (part > PARTS // 2))):
            for name in MOST_GROWTH:
                getattr(samples, name)[part].add(value)
    assert leaking.growth() == dict.fromkeys(MOST_GROWTH, 1000)
    assert resized.growth() == dict.fromkeys(MOST_GROWTH, 0)


def test_the_soak_keeps_a_fixed_number_of_samples_from_the_whole_time() -> None:
    kept = Kept()
    for value in range(100 * KEPT):
        kept.add(value)
    assert kept.taken == 100 * KEPT
    assert len(kept._values) == KEPT
    assert 30 * KEPT < kept.median() < 70 * KEPT
