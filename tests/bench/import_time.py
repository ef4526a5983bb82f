"""What `import ebbtide` costs, and the start of a runtime, in fresh interpreters: about 20 s for each Python.

`python -m tests.bench.import_time [PYTHON ...]`; without one: all that are found (`tests.bench.pythons`).

Milliseconds of CPU time, all threads together: on a machine with nothing else to do an import takes as long by the
clock, and on another one the clock says more of the others. Only the longest turn of the loop is by the clock.

The library is copied and compiled first, as pip does. Images that are built without bytecode compile it at each start:
a line of its own says what that costs. Every kind of run takes turns with the others.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median

from tests.bench.figures import Figure, show
from tests.bench.pythons import pythons

ROUNDS = 15
MOST_MS = 40.0
SOURCE = Path(__file__).parents[2] / "sidecar" / "src" / "ebbtide"

RUN = textwrap.dedent("""
    import sys
    from time import perf_counter, process_time
    kind, endpoint = sys.argv[1:]
    took = {}
    def timed(name, began):
        took[name] = (process_time() - began) * 1e3
    def ebbtide_after_asyncio():
        import asyncio, logging
        began = process_time()
        import ebbtide
        ebbtide.Runtime, ebbtide.Scope, ebbtide.Limits, ebbtide.Settings
        timed("import", began)
        began = process_time()
        for name in ebbtide.__all__:
            getattr(ebbtide, name)
        timed("names", began)
    async def start(ticking):
        import asyncio, ebbtide, os
        longest = 0.0
        async def tick():
            nonlocal longest
            while True:
                at = perf_counter()
                await asyncio.sleep(0)
                longest = max(longest, perf_counter() - at)
        ticker = asyncio.create_task(tick()) if ticking else None
        await asyncio.sleep(0)
        began = process_time()
        managed = {}
        if endpoint:
            managed = dict(endpoints=(endpoint,), pod_uid=f"bench-{os.getpid()}", pod_namespace="bench")
        runtime = ebbtide.Runtime(ebbtide.Settings(admin_port=0, **managed), watchdog=False)
        timed("make", began)
        began = process_time()
        await runtime.__aenter__()
        timed("start", began)
        if ticking:
            await asyncio.sleep(0)
            ticker.cancel()
            took["stall"] = longest * 1e3
        import json
        print(json.dumps(took), flush=True)
        os._exit(0)
    match kind:
        case "asyncio":
            import asyncio
        case "logging":
            import asyncio, logging
        case "ebbtide":
            ebbtide_after_asyncio()
        case "started" | "stall":
            import asyncio
            ebbtide_after_asyncio()
            asyncio.run(start(kind == "stall"))
    import json, os
    print(json.dumps(took), flush=True)
    os._exit(0)
""")
"""One run. It leaves at once: what its end costs is no matter of imports."""

KINDS = ("bare", "asyncio", "logging", "ebbtide", "uncompiled", "started", "stall", "with agent", "stall with agent")
LINES = {
    "bare": "nothing",
    "asyncio": "asyncio",
    "logging": "asyncio, logging",
    "ebbtide": "asyncio, logging, ebbtide",
    "uncompiled": "the same without bytecode of ebbtide",
    "started": "the same, a runtime started",
    "with agent": "the same as a managed pod: with agent, workers' hub",
}


def environment(folder: Path, *, compiled: bool = True) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"PYTHONPATH": str(folder)} | ({} if compiled else {"PYTHONDONTWRITEBYTECODE": "1"})


def one_run(python: Path, kind: str, folders: Mapping[bool, Path], endpoint: str) -> dict[str, float]:
    """Run one fresh interpreter; return milliseconds by what they were spent on, `whole` being all of the process."""
    compiled = kind != "uncompiled"
    script = {"uncompiled": "ebbtide", "with agent": "started", "stall with agent": "stall"}.get(kind, kind)
    command = [str(python), "-c", RUN, script, endpoint if kind.endswith("with agent") else ""]
    env = environment(folders[compiled], compiled=compiled)
    before = getrusage(RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=env)
    after = getrusage(RUSAGE_CHILDREN)
    took: dict[str, float] = json.loads(done.stdout)
    return took | {"whole": (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3}


def measure(python: Path) -> dict[str, dict[str, float]]:
    """Return the medians of one interpreter, in milliseconds, by kind of run and by what they were spent on."""
    with tempfile.TemporaryDirectory() as place, socket.create_server(("127.0.0.1", 0)) as silent:
        # Of its own: what is installed beside an interpreter may import half of the standard library at each start.
        subprocess.run([python, "-m", "venv", "--without-pip", Path(place) / "venv"], check=True)
        python = Path(place) / "venv" / "bin" / "python"
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        folders = {compiled: Path(place) / str(compiled) for compiled in (True, False)}
        for folder in folders.values():
            shutil.copytree(SOURCE, folder / "ebbtide", ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run([python, "-m", "compileall", "-q", folders[True]], check=True, env=environment(folders[True]))
        runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for turn in range(ROUNDS + 1):
            for kind in KINDS:
                took = one_run(python, kind, folders, endpoint)
                if turn:  # the first one fetches files from the disk
                    runs[kind].append(took)
    return {kind: {name: median(each[name] for each in took) for name in took[0]} for kind, took in runs.items()}


def figures(python: Path) -> list[Figure]:
    """Measure one interpreter; write what stands beside the goal, and return the goal's figure."""
    version = subprocess.run([python, "-V"], check=True, capture_output=True, text=True).stdout.split()[1]
    found = measure(python)
    write = sys.stdout.write
    write(f"Python {version}: medians of {ROUNDS} fresh interpreters each, ms of CPU time\n")
    for kind in ("bare", "asyncio", "logging", "ebbtide", "uncompiled", "started", "with agent"):
        took = dict(found[kind])
        write(f"  {LINES[kind]:<52} whole process {took.pop('whole'):6.1f}")
        write("".join(f"   {name} {value:.1f}" for name, value in took.items()) + "\n")
    write(
        f"  longest turn of the loop in a start, by the clock: {found['stall']['stall']:.1f}, "
        f"with agent {found['stall with agent']['stall']:.1f}\n"
    )
    what = f"import ebbtide where asyncio and logging are, {version}"
    return [Figure("G15", what, found["ebbtide"]["import"], "CPU ms", MOST_MS)]


def main(arguments: Sequence[str]) -> None:
    chosen = [Path(argument) for argument in arguments] or [python.program for python in pythons()]
    show([figure for python in chosen for figure in figures(python)])


if __name__ == "__main__":
    main(sys.argv[1:])
