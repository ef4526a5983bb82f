"""Child processes: counted, cancelled, killed where they do not listen, and reaped."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import ebbtide
from ebbtide.lifecycle.machine import Ordered
from ebbtide.protocol import Desired, Order
from tests.unit.library.runtimes import a_runtime, until

REST = ("sleep", "60")
DEAF = ("sh", "-c", 'trap "" TERM; echo ready; exec sleep 60')
"""A signal that is ignored stays so over an exec."""


def is_there(pid: int) -> bool:
    """Say whether there is a process of that number, a zombie included."""
    return Path(f"/proc/{pid}").exists()


async def deaf(scope: ebbtide.Scope, **options: Any) -> asyncio.subprocess.Process:
    child = await scope.process(*DEAF, stdout=subprocess.PIPE, **options)
    assert child.stdout is not None
    assert await child.stdout.readline() == b"ready\n"
    return child


async def test_a_process_is_work_in_flight_until_it_has_ended(caplog: Any) -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("reports")
        child = await scope.process("cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE, meta={"customer": 3})
        (shown,) = runtime.tasks()
        assert (shown["kind"], shown["scope"]) == ("process", "reports")
        assert shown["name"] == f"cat-{shown['id']}"
        assert shown["meta"] == {"customer": 3, "pid": child.pid}
        (found,) = json.loads(runtime.dump({"format": "json", "kind": "process"}))["tasks"]
        assert (found["kind"], found["waits_for"], found["meta"]["pid"]) == ("process", "subprocess", child.pid)
        assert await child.communicate(b"in and out") == (b"in and out", None)
        assert await child.wait() == child.returncode == 0
        await until(lambda: not runtime.tasks_left)
        assert runtime.drain_view()["tally"] == {"finished": 1}
        assert caplog.records == []
        assert not is_there(child.pid)


async def test_it_has_ended_although_somebody_else_holds_its_pipe() -> None:
    async with a_runtime() as runtime:
        child = await runtime.scope("reports").process("sh", "-c", "sleep 60 & echo $!", stdout=subprocess.PIPE)
        assert child.stdout is not None
        grandchild = int(await child.stdout.readline())
        await until(lambda: not runtime.tasks_left)
        os.kill(grandchild, signal.SIGKILL)
        assert await child.stdout.read() == b""
        assert await child.wait() == 0


async def test_a_status_other_than_0_is_a_crash(caplog: Any) -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("reports", on_crash=ebbtide.OnCrash.PROPAGATE)
        neighbour = scope.spawn(asyncio.sleep(60))
        with caplog.at_level(logging.ERROR):
            child = await scope.process(sys.executable, "-c", "raise SystemExit(3)", name="report-7")
            await until(lambda: not runtime.tasks_left)
        assert child.returncode == 3
        assert [record.getMessage() for record in caplog.records] == [
            f"ebbtide: process report-7 of reports ended with status 3: {{'pid': {child.pid}}}"
        ]
        assert neighbour.cancelled()
        assert isinstance(scope.failure, subprocess.CalledProcessError)
        assert runtime.drain_view()["tally"] == {"failed": 1, "cancelled": 1}


async def test_what_cannot_be_started_is_told_to_its_caller_and_counted(caplog: Any) -> None:
    async with a_runtime() as runtime:
        with pytest.raises(FileNotFoundError):
            await runtime.scope("reports").process("/no/such/program")
        assert runtime.tasks_left == 0
        assert runtime.drain_view()["tally"] == {"failed": 1}
        assert caplog.records == []


async def test_a_refused_process_is_not_started(tmp_path: Path) -> None:
    async with a_runtime() as runtime:
        runtime.drain("test", leave=False)
        await until(lambda: not runtime.intake_open)
        with pytest.raises(ebbtide.Refused):
            await runtime.scope("reports").process("touch", str(tmp_path / "started"))
        assert runtime.drain_view()["tally"] == {"refused": 1}
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("way", ["scope", "id"])
async def test_a_cancel_is_a_sigterm(way: str, caplog: Any) -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("reports")
        child = await scope.process(*REST)
        with caplog.at_level(logging.ERROR):
            if way == "scope":
                assert scope.cancel("not today") == 1
            else:
                assert runtime.cancel(runtime.tasks()[0]["id"])
            assert await child.wait() == -signal.SIGTERM
            await until(lambda: not runtime.tasks_left)
        assert runtime.drain_view()["tally"] == {"cancelled": 1}
        assert caplog.records == []
        assert not is_there(child.pid)


async def test_a_process_that_cleans_up_after_sigterm_was_cancelled_whatever_its_status() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("reports")
        child = await scope.process(
            "sh", "-c", "trap 'echo cleaned up; exit 0' TERM; echo ready; while :; do sleep 0.02; done", stdout=-1
        )
        assert child.stdout is not None
        assert await child.stdout.readline() == b"ready\n"
        scope.cancel("test")
        assert await child.stdout.read() == b"cleaned up\n"
        assert await child.wait() == 0
        await until(lambda: not runtime.tasks_left)
        assert runtime.drain_view()["tally"] == {"cancelled": 1}


async def test_one_that_ignores_sigterm_is_killed_before_its_grace_is_over(caplog: Any) -> None:
    async with a_runtime(cancel_grace_s=0.4) as runtime:
        scope = runtime.scope("reports")
        child = await deaf(scope, name="deaf")
        scope.cancel("test")
        assert await child.wait() == -signal.SIGKILL
        await until(lambda: not runtime.tasks_left)
        assert runtime.drain_view()["tally"] == {"cancelled": 1}
        assert "ebbtide: process deaf of reports is killed: it got SIGTERM 0.3 s ago" in caplog.text
        assert not is_there(child.pid)


async def test_a_time_limit_ends_a_process() -> None:
    async with a_runtime(cancel_grace_s=1) as runtime:
        scope = runtime.scope("reports", timeout_s=3600)
        # The start is within the limit, and takes its time on a busy machine.
        polite, child = await asyncio.gather(scope.process(*REST, timeout_s=1.0), deaf(scope, timeout_s=1.0))
        assert await polite.wait() == -signal.SIGTERM
        assert await child.wait() == -signal.SIGKILL
        await until(lambda: not runtime.tasks_left)
        assert runtime.drain_view()["tally"] == {"timed_out": 2}


async def test_a_drain_waits_for_a_process() -> None:
    async with a_runtime() as runtime:
        child = await runtime.scope("reports").process("cat", stdin=subprocess.PIPE)
        runtime.drain("test", leave=False)
        await until(lambda: runtime.state is ebbtide.PodState.DRAINING)
        assert runtime.tasks_left == 1
        assert child.stdin is not None
        child.stdin.close()
        await until(lambda: runtime.state is ebbtide.PodState.DRAINED)
        assert runtime.drain_view()["tally"] == {"finished": 1}
        assert runtime.drain_view()["forced"] is False


async def test_a_drain_ends_processes_within_its_budget_and_leaves_none_behind() -> None:
    async with a_runtime(drain_timeout_s=0.05, cancel_grace_s=1) as runtime:
        scope = runtime.scope("reports")
        children = [await scope.process(*REST), await deaf(scope)]
        runtime.drain("test", leave=False)
        await until(lambda: runtime.state is ebbtide.PodState.DRAINED)
        assert runtime.drain_view()["tally"] == {"cancelled": 2}
        assert not any(is_there(child.pid) for child in children)


async def test_the_drains_own_grace_counts_and_not_the_usual_one() -> None:
    async with a_runtime(drain_timeout_s=30, cancel_grace_s=60) as runtime:
        child = await deaf(runtime.scope("reports"))
        order = Order(desired=Desired.DRAIN, generation=1, epoch=1, drain_timeout_s=0.05, cancel_grace_s=1)
        runtime._conductor.post(Ordered(order))
        await until(lambda: not runtime.tasks_left)
        assert runtime.drain_view()["tally"] == {"cancelled": 1}
        assert not is_there(child.pid)


async def test_a_drain_kills_processes_while_the_loop_is_blocked() -> None:
    async with a_runtime(drain_timeout_s=0.02, cancel_grace_s=0.05) as runtime:
        child = await runtime.scope("reports").process(*REST)
        runtime.drain("test", leave=False)
        # The loop can neither cancel it nor reap it, and so sees nothing of its end.
        assert runtime.wait_drained(10)
        while _runs(child.pid):
            time.sleep(0.002)  # noqa: ASYNC251 (it is to be blocked)
        assert await child.wait() == -signal.SIGKILL
        await until(lambda: not runtime.tasks_left)
        assert runtime.drain_view()["tally"] == {"abandoned": 1}


async def test_a_process_that_leads_a_group_is_signalled_with_all_of_it() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("reports")
        script = "sleep 60 & echo $!; wait"
        alone = await scope.process("sh", "-c", script, stdout=subprocess.PIPE)
        leader = await scope.process("sh", "-c", script, stdout=subprocess.PIPE, start_new_session=True)
        assert alone.stdout is not None
        assert leader.stdout is not None
        spared, hit = int(await alone.stdout.readline()), int(await leader.stdout.readline())
        scope.cancel("test")
        # Its end is the end of the pipe, which it shares with its leader.
        assert await leader.stdout.read() == b""
        await until(lambda: not _runs(hit))
        await until(lambda: not runtime.tasks_left)
        assert _runs(spared)
        os.kill(spared, signal.SIGKILL)
        assert await alone.stdout.read() == b""


def _runs(pid: int) -> bool:
    """Say whether a process has not ended; whose child it is decides how long it stays a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_process_whose_starter_is_cancelled_meanwhile_is_ended() -> None:
    others = _children_of(os.getpid())  # what fixtures of the session have started
    async with a_runtime() as runtime:
        scope = runtime.scope("reports")
        task = asyncio.ensure_future(scope.process(*REST))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        await until(lambda: not runtime.tasks_left)
        assert runtime.drain_view()["tally"] == {"cancelled": 1}
        assert _children_of(os.getpid()) <= others


def _children_of(pid: int) -> set[str]:
    return {name for task in Path(f"/proc/{pid}/task").iterdir() for name in (task / "children").read_text().split()}


async def test_a_cancel_that_comes_before_the_start_starts_nothing() -> None:
    others = _children_of(os.getpid())  # what fixtures of the session have started
    async with a_runtime() as runtime:
        scope = runtime.scope("reports")
        task = asyncio.ensure_future(scope.process(*REST))
        await asyncio.sleep(0)
        scope.cancel("test")
        await asyncio.wait({task})
        assert task.cancelled()
        assert runtime.drain_view()["tally"] == {"cancelled": 1}
        assert _children_of(os.getpid()) <= others


async def test_a_process_in_a_thread_is_counted_with_its_thread() -> None:
    async with a_runtime() as runtime:
        asked = threading.Event()

        def work() -> bytes:
            with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
                asked.wait(10)
                return child.communicate(b"from a thread")[0]

        future = runtime.scope("reports").thread(work)
        assert runtime.tasks_left == 1
        asked.set()
        assert await asyncio.wrap_future(future) == b"from a thread"
        assert runtime.drain_view()["tally"] == {"finished": 1}


SCRIPT = """
    import asyncio, gc, json, os, signal, subprocess, sys
    import ebbtide
    from ebbtide.lifecycle.machine import Durations

    def settings(drain_timeout_s):
        return ebbtide.Settings(admin_port=0, durations=Durations(0, drain_timeout_s, 1))
"""


def run(script: str) -> str:
    program = textwrap.dedent(SCRIPT) + textwrap.dedent(script)
    ran = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_forked_process_neither_counts_nor_ends_its_parents_children() -> None:
    assert (
        run("""
        async def main():
            async with ebbtide.Runtime(settings(30), watchdog=False) as runtime:
                child = await runtime.scope("reports").process("cat", stdin=subprocess.PIPE)
                forked = os.fork()
                if not forked:
                    print("forked", runtime.tasks_left, runtime.tasks(), flush=True)
                    asyncio._set_running_loop(None)
                    del child
                    gc.collect()
                    from ebbtide.tasks.processes import kill
                    kill(runtime._registry.entries())
                    os._exit(0)
                assert os.waitpid(forked, 0)[1] == 0
                print("parent", runtime.tasks_left, child.returncode, flush=True)
                child.stdin.close()
                print(await child.wait(), flush=True)
        asyncio.run(main())
    """)
        == "forked 0 []\nparent 1 None\n0\n"
    )


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_sigterm_of_the_pod_ends_processes_in_every_loop(loop: str) -> None:
    pytest.importorskip(loop)
    said = run(f"""
        import {loop}
        async def main():
            async with ebbtide.Runtime(settings(0.05), watchdog=False) as runtime:
                scope = runtime.scope("reports")
                assert await (await scope.process("true")).wait() == 0
                polite = await scope.process("sleep", "60")
                deaf = await scope.process("sh", "-c", 'trap "" TERM; echo; exec sleep 60', stdout=subprocess.PIPE)
                await deaf.stdout.readline()
                shown = json.loads(runtime.dump({{"format": "json"}}))["tasks"]
                os.kill(os.getpid(), signal.SIGTERM)
                await runtime.wait_exit()
                print({{task["waits_for"] for task in shown}}, await polite.wait(), await deaf.wait())
                print(runtime.drain_view()["tally"])
        {loop}.run(main())
    """)
    assert said == "{'subprocess'} -15 -9\n{'finished': 1, 'cancelled': 2}\n"
