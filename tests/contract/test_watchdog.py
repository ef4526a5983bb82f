"""The last resort, against processes that hang in every way there is: each is gone within its budget."""

import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

BUDGET_S = 0.4
MARGIN_S = 1.3
"""Instead of five seconds; the watchdog comes one second before its end."""

SERVICE = textwrap.dedent(f"""
    import asyncio, logging, os, re, sys, threading, time, ebbtide, ebbtide.lifecycle.effects
    from ebbtide.lifecycle.machine import Durations
    how = sys.argv[1].split("+")
    ebbtide.lifecycle.effects.EXIT_MARGIN_S = {MARGIN_S}
    for_ever = threading.Event()

    class Pipe(logging.StreamHandler):
        def emit(self, record):
            if "log" in how and "Serving" not in record.getMessage():
                for_ever.wait()  # nobody reads the pipe behind it
            super().emit(record)

    logging.basicConfig(level=logging.INFO, handlers=[Pipe()])

    async def swallow():
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass

    async def block_the_loop():
        while True:
            time.sleep(0.01)

    def hold_the_interpreter():
        re.match("(a+)+$", "a" * 60 + "b")

    def fork():
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)

    async def main():
        durations = Durations(0.0, {BUDGET_S / 2}, {BUDGET_S / 2})
        async with ebbtide.Runtime(ebbtide.Settings(admin_port=0, durations=durations)) as runtime:
            if "task" in how:
                runtime.scope("work").spawn(swallow(), name="culprit")
            if "loop" in how:
                runtime.scope("work").spawn(block_the_loop(), name="culprit")
            if "interpreter" in how:
                runtime.on_drain(hold_the_interpreter)
            if "fork" in how:
                runtime.on_drain(fork)  # before that: the last registered is the first
            if "hook" in how:
                runtime.on_exit(for_ever.wait)
            if "hooks" in how:
                for _ in range(3):
                    runtime.on_exit(swallow, timeout_s=3600)
            if "thread" in how:
                threading.Thread(target=for_ever.wait).start()
            if "executor" in how:
                asyncio.get_running_loop().run_in_executor(None, for_ever.wait)
            print("serving", flush=True)
            await runtime.wait_exit()

    asyncio.run(main())
""")


HOW = ("task", "loop", "interpreter", "hook", "hooks", "log", "thread", "executor")
ROUNDS = int(os.environ.get("EBBTIDE_HANG_ROUNDS", "12"))
"""Mixtures of them."""


def ended_by_force(how: Sequence[str], folder: Path, late_s: float) -> str:
    """Run a process that hangs in these ways, see that it is gone in time, and return its log."""
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-c", SERVICE, "+".join(how)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "serving\n"
            process.send_signal(signal.SIGTERM)
            told_at = time.monotonic()
            assert process.wait(20) == 1, how
            took_s = time.monotonic() - told_at
    assert took_s < BUDGET_S + MARGIN_S + late_s, how
    return (folder / "log").read_text()


@pytest.mark.parametrize("how", HOW)
def test_a_process_that_hangs_is_gone_within_its_budget(how: str, tmp_path: Path) -> None:
    said = ended_by_force([how], tmp_path, late_s=0.5)
    if how == "interpreter":
        assert "Timeout" in said
    elif how != "log":
        assert re.search(r"ending the process; its main thread is at \S+:\d+ in ", said)


def test_a_process_that_forked_in_its_drain_and_then_hangs_is_gone_as_well(tmp_path: Path) -> None:
    assert "Timeout" in ended_by_force(["interpreter", "fork"], tmp_path, late_s=0.5)


def test_a_process_that_hangs_in_several_ways_is_gone_as_well(tmp_path_factory: pytest.TempPathFactory) -> None:
    mixtures = [random.Random(seed).sample(HOW, 2 + seed % 3) for seed in range(ROUNDS)]
    with ThreadPoolExecutor(4) as threads:
        # Side by side on a small machine: each gets its turn late.
        runs = [threads.submit(ended_by_force, how, tmp_path_factory.mktemp("hang"), 1.5) for how in mixtures]
    for run in runs:
        run.result()
