"""Nothing grows in a process that drains and serves again, over and over; `make soak` goes on for five minutes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ebbtide
from tests.bench.soak import Samples

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
    for third in range(3):
        samples.take([runtime], third)
    assert samples.grown() == {}
    runtime._registry.abandoned.update(range(10))
    samples.take([runtime], 2)
    assert samples.grown() == {"Registry.abandoned": (0, 10)}
