"""Whole processes: what signals do to them, and how they end."""

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVICE = textwrap.dedent("""
    import asyncio, os, sys, ebbtide
    from ebbtide.lifecycle.machine import Durations
    async def work(seconds):
        await asyncio.sleep(seconds)
        print("finished", flush=True)
    async def main():
        durations = Durations(0.0, 30.0, float(sys.argv[2]))
        settings = ebbtide.Settings(admin_port=0, durations=durations)
        async with ebbtide.Runtime(settings) as runtime:
            runtime.on_drain(lambda: print("draining", flush=True))
            runtime.scope("work").spawn(work(float(sys.argv[1])))
            print("serving", flush=True)
            await runtime.wait_exit()
        print("bye", flush=True)
    asyncio.run(main())
""")


@contextmanager
def a_service(seconds: float, cancel_grace_s: float = 5.0) -> Iterator[subprocess.Popen[str]]:
    arguments = [sys.executable, "-c", SERVICE, str(seconds), str(cancel_grace_s)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "serving\n"
            yield process
        finally:
            # Popen waits for it: one that missed its signal would keep a failed test from being told.
            process.kill()


def test_sigterm_lets_tasks_finish_and_the_process_exits() -> None:
    with a_service(0.5) as process:
        os.kill(process.pid, signal.SIGTERM)
        assert process.communicate(timeout=20)[0] == "draining\nfinished\nbye\n"
        assert process.returncode == 0


def test_a_second_sigterm_cancels_at_once() -> None:
    with a_service(60) as process:
        assert process.stdout is not None
        os.kill(process.pid, signal.SIGTERM)
        # Two that come together are one to the kernel: the second waits until the first was understood.
        assert process.stdout.readline() == "draining\n"
        os.kill(process.pid, signal.SIGTERM)
        assert process.communicate(timeout=20)[0] == "bye\n"


def test_ctrl_c_drains_first_and_cancels_when_it_comes_again() -> None:
    with a_service(60) as process:
        assert process.stdout is not None
        os.kill(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "draining\n"
        os.kill(process.pid, signal.SIGINT)
        assert process.communicate(timeout=20)[0] == "bye\n"
        assert process.returncode == 0


def test_sigterm_ends_a_start_at_once_and_what_had_started_is_stopped() -> None:
    script = textwrap.dedent("""
        import asyncio, ebbtide
        async def pool():
            print("opened", flush=True)
            yield
            print("closed", flush=True)
        async def check():
            print("checking", flush=True)
            await asyncio.sleep(3600)
        async def main():
            runtime = ebbtide.Runtime(ebbtide.Settings(admin_port=0))
            runtime.on_start(pool, ebbtide.Stage.POOLS)
            runtime.on_start(check, ebbtide.Stage.CHECKS)
            async with runtime:
                print("serving", flush=True)
        try:
            asyncio.run(main())
        except ebbtide.StartFailed as error:
            print(error, flush=True)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["opened\n", "checking\n"]
        os.kill(process.pid, signal.SIGTERM)
        said = process.communicate(timeout=4)[0]  # less than the quiesce time: nobody knew of this process yet
        assert said == "closed\nstep check did not start: the process was told to leave before it had started\n"


def test_a_forked_child_dies_of_sigterm_like_any_other() -> None:
    script = textwrap.dedent("""
        import asyncio, os, signal, time, ebbtide
        async def main():
            async with ebbtide.Runtime(ebbtide.Settings(admin_port=0)) as runtime:
                ready, tell = os.pipe()
                child = os.fork()
                if child == 0:
                    os.write(tell, b".")
                    while True:
                        time.sleep(0.01)  # not pause(), which would miss a signal that came just before it
                os.read(ready, 1)  # until then CPython may drop a signal
                os.kill(child, signal.SIGTERM)
                _, status = os.waitpid(child, 0)
                print(os.WIFSIGNALED(status) and os.WTERMSIG(status), flush=True)
        asyncio.run(main())
    """)
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert answer.stdout == "15\n"


def test_a_runtime_that_was_made_before_a_fork_runs_after_it() -> None:
    script = textwrap.dedent("""
        import asyncio, os, ebbtide
        runtime = ebbtide.Runtime(ebbtide.Settings(admin_port=0))
        async def main():
            async with runtime:
                print(runtime.state, flush=True)
        child = os.fork()
        if child == 0:
            asyncio.run(main())
            os._exit(0)
        print(os.waitpid(child, 0)[1], flush=True)
    """)
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert answer.stdout == "Serving\n0\n"


STUCK = textwrap.dedent("""
    import asyncio, logging, sys, time, ebbtide, ebbtide.lifecycle.effects
    from ebbtide.lifecycle.machine import Durations
    logging.basicConfig(level=logging.INFO)
    ebbtide.lifecycle.effects.EXIT_MARGIN_S = 1.2
    async def deaf():
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass
    async def blocked():
        while True:
            time.sleep(0.01)
    async def main():
        settings = ebbtide.Settings(admin_port=0, durations=Durations(0.0, 0.1, 0.1))
        async with ebbtide.Runtime(settings) as runtime:
            asyncio.get_running_loop().call_later(0.1, print, "serving", ) if sys.argv[1] == "deaf" else None
            if sys.argv[1] == "blocked":
                print("serving", flush=True)
            runtime.scope("work").spawn(deaf() if sys.argv[1] == "deaf" else blocked(), name="culprit")
            await asyncio.sleep(0.2)
            sys.stdout.flush()
            await runtime.wait_exit()
    asyncio.run(main())
""")


def ended_by_the_watchdog(how: str, folder: Path) -> str:
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen([sys.executable, "-c", STUCK, how], stdout=subprocess.PIPE, stderr=log, text=True)
        with process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "serving\n"
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 1
            finally:
                process.kill()
        log.seek(0)
        return log.read()


def test_a_task_that_never_ends_does_not_keep_the_process(tmp_path: Path) -> None:
    log = ended_by_the_watchdog("deaf", tmp_path)
    assert re.search(r"abandoned 1, when the drain's budget was spent: culprit of \w+ at \S+:\d+ in ", log)
    assert "ending the process" in log


def test_a_blocked_loop_does_not_keep_the_process(tmp_path: Path) -> None:
    log = ended_by_the_watchdog("blocked", tmp_path)
    assert re.search(r"abandoned 1, when the drain's budget was spent: culprit of \w+ at \S+:\d+ in ", log)
    assert "ending the process" in log
