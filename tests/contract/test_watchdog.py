"""The last resort, against processes that hang in every way there is: each is gone within its budget."""

import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

BUDGET_S = 0.4
MARGIN_S = 1.3
"""Instead of five seconds; the watchdog comes one second before its end."""

SERVICE = textwrap.dedent(f"""
    import asyncio, logging, re, sys, threading, time, ebbtide, ebbtide.effects
    from ebbtide.machine import Durations
    how = sys.argv[1]
    ebbtide.effects.EXIT_MARGIN_S = {MARGIN_S}
    for_ever = threading.Event()

    class Pipe(logging.StreamHandler):
        def emit(self, record):
            if how == "log" and "Serving" not in record.getMessage():
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

    async def main():
        durations = Durations(0.0, {BUDGET_S / 2}, {BUDGET_S / 2})
        async with ebbtide.Runtime(ebbtide.Settings(admin_port=0, durations=durations)) as runtime:
            match how:
                case "task":
                    runtime.scope("work").spawn(swallow(), name="culprit")
                case "loop":
                    runtime.scope("work").spawn(block_the_loop(), name="culprit")
                case "interpreter":
                    runtime.on_drain(hold_the_interpreter)
                case "hook":
                    runtime.on_exit(for_ever.wait)
                case "hooks":
                    for _ in range(3):
                        runtime.on_exit(swallow, timeout_s=3600)
                case "thread":
                    threading.Thread(target=for_ever.wait).start()
                case "executor":
                    asyncio.get_running_loop().run_in_executor(None, for_ever.wait)
            print("serving", flush=True)
            await runtime.wait_exit()

    asyncio.run(main())
""")


@pytest.mark.parametrize("how", ["task", "loop", "interpreter", "hook", "hooks", "log", "thread", "executor"])
def test_a_process_that_hangs_is_gone_within_its_budget(how: str, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", SERVICE, how], stdout=subprocess.PIPE, stderr=log, text=True)
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "serving\n"
            process.send_signal(signal.SIGTERM)
            told_at = time.monotonic()
            assert process.wait(20) == 1
            took_s = time.monotonic() - told_at
    assert took_s < BUDGET_S + MARGIN_S + 0.5
    said = (tmp_path / "log").read_text()
    if how == "interpreter":
        assert "Timeout" in said
    elif how != "log":
        assert re.search(r"ending the process; its main thread is at \S+:\d+ in ", said)
