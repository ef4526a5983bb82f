"""What is loaded when: little by an import, all else by the start of a runtime, and nothing by a drain."""

import asyncio
import json
import pickle
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Set as AbstractSet
from pathlib import Path

import ebbtide
from ebbtide.protocol import Report
from tests.unit.etcd.relay_stand import ALICE, KEYS, Stand

SOURCE = Path(ebbtide.__file__).parent
COSTLY = {
    "calendar",
    "datetime",
    "decimal",
    "email",
    "fractions",
    "hashlib",
    "hmac",
    "html",
    "http",
    "inspect",
    "ipaddress",
    "numbers",
    "pathlib",
    "platform",
    "random",
    "secrets",
    "socketserver",
    "ssl",
    "statistics",
    "tempfile",
    "urllib",
    "uuid",
}
"""Packages of the standard library that an import of ours is not to be the first to load; some are asyncio's own."""
APART = {"ebbtide.__main__", "ebbtide.pytest_plugin"}
"""Modules that no service loads."""
MODULES = {
    ".".join(("ebbtide", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
} - APART
FOR_ASGI = {name for name in MODULES if name.startswith("ebbtide.asgi")}
"""Imported by whoever uses it, all at once."""
MODULES -= FOR_ASGI
FOR_A_STORE = {name for name in MODULES if name.startswith(("ebbtide.agent", "ebbtide.etcd"))}
FOR_OTHER_WORKERS = {"ebbtide.workers.group", "ebbtide.workers.hub", "ebbtide.workers.link"}

SERVICE = """
    import asyncio, json, os, signal, sys
    managed = json.loads(sys.argv[1])
    import ebbtide
    from ebbtide.lifecycle.machine import Durations
    turns = 0

    async def tick():
        global turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def pool():
        yield

    async def stubborn():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)

    async def shaky():
        raise ValueError("again and again")

    async def main():
        ticking = asyncio.create_task(tick())
        runtime = ebbtide.Runtime(ebbtide.Settings(admin_port=0, durations=Durations(0.0, 0.5, 2.0), **managed))
        runtime.on_start(pool, ebbtide.Stage.POOLS)
        runtime.on_drain(lambda: asyncio.sleep(0))
        runtime.on_exit(lambda: None)
        before = turns
        async with runtime:
            started = set(sys.modules)
            loaded = turns - before
            ticking.cancel()
            scope = runtime.scope("work")
            scope.spawn(asyncio.sleep(0.1))
            scope.spawn(stubborn(), timeout_s=60)
            scope.supervise(shaky, restart=ebbtide.Restart(limit=1, first_s=0.01))
            scope.thread(len, "")
            with scope.track("block"):
                os.kill(os.getpid(), signal.SIGTERM)
                await runtime.drain_requested()
                runtime.dump(), runtime.leaks(), runtime.sample(), runtime.drain_view()
            await runtime.wait_exit()
        assert runtime.drain_report().digest()["outcome"] == "cancelled", runtime.drain_report()
        print(json.dumps({"started": sorted(started), "turns": loaded, "late": sorted(set(sys.modules) - started)}))

    asyncio.run(main())
"""


def python(script: str, *arguments: str) -> list[str]:
    # Without what is installed beside it: a package may load half of the standard library at each start.
    program = f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r})\n{textwrap.dedent(script)}"
    return [sys.executable, "-S", "-c", program, *arguments]


def run(script: str) -> str:
    ran = subprocess.run(python(script), capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def loaded_by(statement: str) -> AbstractSet[str]:
    """Return the modules that a statement loads where asyncio and logging are."""
    script = f"import asyncio, logging, sys\nbefore = set(sys.modules)\n{statement}\nprint(*set(sys.modules) - before)"
    return set(run(script).split())


def ours(modules: AbstractSet[str]) -> AbstractSet[str]:
    return {name for name in modules if name.partition(".")[0] == "ebbtide"}


def test_an_import_loads_nothing_that_is_costly() -> None:
    loaded = loaded_by("import ebbtide")
    assert "ebbtide.runtime" in loaded
    assert not {name.partition(".")[0] for name in loaded} & COSTLY


def test_an_import_loads_nothing_that_only_a_runtime_needs() -> None:
    assert not loaded_by("import ebbtide") & (
        FOR_A_STORE
        | FOR_OTHER_WORKERS
        | {"ebbtide.admin.server", "ebbtide.admin.dump", "ebbtide.protocol", "ebbtide.workers.pod"}
    )


def test_every_public_name_is_there_and_listed() -> None:
    assert (
        run("""
        import ebbtide
        listed = set(dir(ebbtide))
        assert set(ebbtide.__all__) <= listed, set(ebbtide.__all__) - listed
        from ebbtide import *
        print(DrainReport.__name__, Finding.__name__, Runtime.__name__)
        """)
        == "DrainReport Finding Runtime\n"
    )


def test_no_name_that_is_not_there_is_made_up() -> None:
    assert not hasattr(ebbtide, "Drainreport")


def test_states_and_reports_can_be_pickled() -> None:
    report = ebbtide.DrainReport(outcome=None, reason="by hand", started_at=0.0, took_s=0.0, budget_s=0.0)
    for value in (ebbtide.PodState.DRAINED, report, ebbtide.Limits(max_tasks=1), ebbtide.Restart()):
        assert pickle.loads(pickle.dumps(value)) == value
    # As it was written where the words were in the protocol.
    assert pickle.loads(b"cebbtide.protocol\nPodState\n(S'Drained'\ntR.") is ebbtide.PodState.DRAINED


async def serve(**managed: object) -> dict[str, set[str]]:
    """Run a service from its start to its end; return what the start and what the drain had loaded."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*python(SERVICE, json.dumps(managed)), stdout=pipe, stderr=pipe)
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert b"ImportError" not in err
    told = json.loads(out)
    assert told["turns"] > 10, "the start held up the loop"
    return {name: set(told[name]) for name in ("started", "late")}


async def test_a_drain_loads_nothing_where_a_process_is_alone() -> None:
    seen = await serve()
    assert ours(seen["started"]) == MODULES - FOR_A_STORE - FOR_OTHER_WORKERS
    assert not seen["late"]


async def test_a_drain_loads_nothing_where_a_process_speaks_for_a_managed_pod(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("alice")
    async with Stand() as stand:
        seen = await serve(
            endpoints=[stand.url],
            pod_uid=ALICE.uid,
            pod_namespace=ALICE.namespace,
            workload="deployment/orders",
            token_file=str(token),
            # Its own: the same test on another Python, at the same time, would be a worker of the same pod.
            workers_socket=f"@ebbtide-test/{uuid.uuid4().hex}",
        )
        last = await stand.store.get(KEYS.report(ALICE.namespace, ALICE.uid))
        assert last is not None, "there was no agent"
        assert Report.decode(last.value).state is ebbtide.PodState.EXITING
    assert ours(seen["started"]) == MODULES
    assert not seen["late"]


def test_a_fork_loads_nothing_in_the_child() -> None:
    # Another thread may have held the lock of a module at the time of the fork, and is not there to let go of it.
    assert (
        run("""
        import asyncio, os, sys
        import ebbtide

        def forked(when):
            before = set(sys.modules)
            child = os.fork()
            if not child:
                print(when, *sorted(set(sys.modules) - before), flush=True)
                os._exit(0)
            os.waitpid(child, 0)

        async def main():
            async with runtime:
                forked("started")

        runtime = ebbtide.Runtime(ebbtide.Settings(admin_port=0), watchdog=False)
        forked("made")
        asyncio.run(main())
        """)
        == "made\nstarted\n"
    )
