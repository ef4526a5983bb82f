"""A process that forks while its runtime runs: the child begins anew, and harms nothing of its parent's."""

import subprocess
import sys
import textwrap

FORKING = """
    import asyncio, os, signal, socket, ebbtide
    from ebbtide.lifecycle.machine import Durations

    def in_child(function):
        # Where the parent's loop runs, in the middle of its work.
        child = os.fork()
        if child:
            return child
        try:
            # The parent's loop is no loop of this process.
            asyncio._set_running_loop(None)
            function()
        except BaseException as error:
            print("child failed:", repr(error), flush=True)
        os._exit(0)

    def wait_for(child):
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    runtime = ebbtide.Runtime(ebbtide.Settings(admin_port=0, durations=Durations(0, 30, 5)), watchdog=False)
    scope = runtime.scope("work", limits=ebbtide.Limits(max_tasks=1))
"""


def run(script: str) -> str:
    program = textwrap.dedent(FORKING) + textwrap.dedent(script)
    # From 3.12 on Python warns whoever forks with threads running, which is what is tested here.
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout + ran.stderr


def test_a_runtime_that_runs_in_the_parent_runs_anew_in_the_child() -> None:
    assert (
        run("""
        async def serve():
            async with runtime:
                await scope.spawn(asyncio.sleep(0))
                print("child", runtime.state, runtime.tasks_left, runtime.drain_view()["tally"], flush=True)

        async def main():
            async with runtime:
                held = scope.spawn(asyncio.Event().wait())
                wait_for(in_child(lambda: asyncio.run(serve())))
                print("parent", runtime.state, runtime.tasks_left, flush=True)
                held.cancel()
        asyncio.run(main())
    """)
        == "child Serving 0 {'finished': 1}\nparent Serving 1\n"
    )


def test_the_clean_up_of_the_parents_tasks_does_not_run_in_the_child() -> None:
    assert (
        run("""
        import gc
        async def work():
            try:
                await asyncio.Event().wait()
            finally:
                print("cleaned up in", "parent" if os.getpid() == parent else "child", flush=True)

        parent = os.getpid()
        async def main():
            async with runtime:
                scope.spawn(work())
                await asyncio.sleep(0)
                wait_for(in_child(gc.collect))
                scope.cancel("enough")
        asyncio.run(main())
    """)
        == "cleaned up in parent\n"
    )


def test_a_child_that_leaves_a_block_of_its_parents_counts_nothing() -> None:
    assert (
        run("""
        async def main():
            async with runtime:
                with scope.track():
                    child = os.fork()
                if not child:
                    print("child", runtime.tasks_left, runtime.drain_view()["tally"], flush=True)
                    os._exit(0)
                wait_for(child)
                print("parent", runtime.tasks_left, runtime.drain_view()["tally"], flush=True)
        asyncio.run(main())
    """)
        == "child 0 {}\nparent 0 {'finished': 1}\n"
    )


def test_the_childs_own_runtime_hears_its_signals_and_the_parents_does_not() -> None:
    assert (
        run("""
        async def serve():
            async with runtime:
                os.kill(os.getpid(), signal.SIGTERM)
                await runtime.wait_exit()
                print("child", runtime.drain_view()["reason"], flush=True)

        async def main():
            async with runtime:
                wait_for(in_child(lambda: asyncio.run(serve())))
                print("parent", runtime.state, flush=True)
        asyncio.run(main())
    """)
        == "child signal: SIGTERM\nparent Serving\n"
    )


def test_a_child_that_outlives_its_parent_holds_neither_port_nor_lead() -> None:
    assert (
        run("""
        settings = ebbtide.Settings(admin_port=0, pod_uid=f"test-{os.getpid()}", pod_namespace="test")

        async def main():
            async with ebbtide.Runtime(settings, watchdog=False) as first:
                port = first.admin_port
                told, tell = os.pipe()
                here, born = os.pipe()
                child = os.fork()
                if not child:
                    os.close(tell)
                    os.write(born, b"!")
                    os.read(told, 1)  # until the parent is through
                    os._exit(0)
                os.read(here, 1)  # it lets go of what is the parent's as soon as it runs, which may take a while
            with socket.create_server(("127.0.0.1", port)):
                print("the port is free", flush=True)
            async with ebbtide.Runtime(settings, watchdog=False) as second:
                print("the lead is free", second.admin_port is not None, flush=True)
            os.close(tell)
            wait_for(child)
        asyncio.run(main())
    """)
        == "the port is free\nthe lead is free True\n"
    )


def test_a_child_that_is_forked_while_its_parent_drains_ends_and_drains_as_any_other() -> None:
    assert (
        run("""
        import logging, sys, threading
        from ebbtide.lifecycle.machine import Source

        logging.getLogger("ebbtide").setLevel(logging.ERROR)  # not in the main thread: no signals, which is said
        # As Celery's parent: the runtime beside, in a thread, and the main thread forks workers.
        runtime = ebbtide.Runtime(ebbtide.Settings(admin_port=0, durations=Durations(0, 30, 5)))
        draining = threading.Event()

        async def drain():
            async with runtime:
                runtime.scope("work").spawn(asyncio.Event().wait())
                runtime.request_drain(Source.PRESTOP, "", leave=True)
                draining.set()
                await runtime.wait_exit()

        async def serve():
            async with runtime:
                print("child", runtime.state, flush=True)
                runtime.request_drain(Source.PRESTOP, "", leave=True)
                await runtime.wait_exit()

        threading.Thread(target=lambda: asyncio.run(drain()), daemon=True).start()
        draining.wait()
        for work in (lambda: None, lambda: asyncio.run(serve())):
            child = os.fork()
            if not child:
                signal.alarm(20)  # by the kernel: one that holds the interpreter runs no handler
                work()
                sys.exit()
            wait_for(child)
        print("parent", runtime.state, flush=True)
        os._exit(0)
    """)
        == "child Serving\nparent Draining\n"
    )


def test_a_child_that_is_forked_during_a_dump_answers_for_itself() -> None:
    assert (
        run("""
        import json, threading

        class Slow:
            def __str__(self):  # in the midst of the dump
                begun.set()
                forked.wait()
                return "seen"

        async def serve():
            async with runtime:
                print("child", json.loads(runtime.dump({"format": "json"}))["count"], flush=True)

        begun, forked = threading.Event(), threading.Event()
        async def main():
            async with runtime:
                held = scope.spawn(asyncio.Event().wait(), meta={"slow": Slow()})
                dump = threading.Thread(target=runtime.dump, args=({"format": "json"},))
                dump.start()
                begun.wait()
                child = in_child(lambda: (signal.alarm(20), asyncio.run(serve())))
                forked.set()
                wait_for(child)
                dump.join()
                held.cancel()
        asyncio.run(main())
    """)
        == "child 0\n"
    )
