"""Starts one process in namespaces of its own, or in those of a sandbox. A script, not a module.

`python -I -S launch.py` reads a request as JSON from stdin and prints the process id, as this host counts it, once the
program has been executed. It is a program of its own because a process must be single-threaded to change namespaces,
and because Python 3.11 has no `os.setns`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from typing import Any, NoReturn

Request = dict[str, Any]

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    encoded = [None if part is None else os.fsencode(part) for part in (source, target, kind)]
    check(libc.mount(*encoded, ctypes.c_ulong(flags), None), f"mounting {source or kind} on {target}")


def open_folder(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY)


def furnish(request: Request) -> None:
    """Give the new mount namespace its own view: nothing that is mounted or written here reaches the host's /run."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    # Opened before anything is covered: a source may lie under another target (the state folder under /var/lib).
    binds = [(os.path.realpath(target), open_folder(source)) for target, source in request["binds"].items()]
    kept = [(path, open_folder(path)) for path in request["keep"]]
    for target, source in binds:
        mount(f"/proc/self/fd/{source}", target, None, MS_BIND | MS_REC)
    for path, source in kept:
        if any(path == target or path.startswith(target + "/") for target, _ in binds):
            os.makedirs(path, exist_ok=True)
            mount(f"/proc/self/fd/{source}", path, None, MS_BIND | MS_REC)
    for path, cover in request["covers"].items():
        if os.path.exists(path):
            with open(path) as current, open(cover, "w") as copy:
                copy.write(current.read())
            mount(cover, path, None, MS_BIND)
    for path, value in request["sysctls"].items():
        with open(path, "w") as setting:
            setting.write(value)
    socket.sethostname(request["hostname"])


def execute(request: Request) -> NoReturn:
    """Become the program, free of this terminal and of what Python changed."""
    os.setsid()
    prefer(request.get("niceness", 0))
    os.chdir("/")
    os.umask(0o022)
    null = os.open("/dev/null", os.O_RDONLY)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execve(request["argv"][0], request["argv"], request["env"])


def prefer(niceness: int) -> None:
    """Set the process's niceness, and that of its session, by which a kernel with autogroups goes instead."""
    if not niceness:
        return
    with contextlib.suppress(OSError):  # a container may not; everything works as well, slower
        os.setpriority(os.PRIO_PROCESS, 0, niceness)
        with open("/proc/self/autogroup", "w") as group:
            group.write(str(niceness))


def create(request: Request, answer: int) -> None:
    """Start the first process of a new sandbox."""
    check(
        libc.unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC), "making the namespaces"
    )
    child = os.fork()
    if child == 0:
        with Reporting(answer):
            furnish(request)
            execute(request)
    os.write(answer, f"{child}\n".encode())


def start(request: Request, answer: int) -> None:
    """Start a process in a sandbox, as a child of its first process."""
    spaces = {
        kind: os.open(f"/proc/{request['sandbox']}/ns/{kind}", os.O_RDONLY)
        for kind in ("pid", "net", "uts", "ipc", "mnt")
    }
    check(libc.setns(spaces.pop("pid"), CLONE_NEWPID), "entering the process namespace")
    # Two forks: the first child lives in the namespace, and when it ends the sandbox's first process inherits (and
    # will reap) the second. A child of this script would be inherited by the host's init.
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    with Reporting(answer):
        if os.fork():
            os._exit(0)
        # While this is still the host's /proc, it tells the host's number of this process.
        os.write(answer, f"{os.readlink('/proc/self')}\n".encode())
        for kind, descriptor in spaces.items():
            check(libc.setns(descriptor, 0), f"entering the {kind} namespace")
        execute(request)


class Reporting:
    """Write what goes wrong in a child to the pipe and end the child."""

    def __init__(self, answer: int) -> None:
        self.answer = answer

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> NoReturn:
        os.write(self.answer, f"error: {error}\n".encode())
        os._exit(1)


def main() -> None:
    request = json.load(sys.stdin)
    # Python's descriptors close on exec: the end of the pipe's data is the news that the program runs.
    reader, writer = os.pipe()
    try:
        {"create": create, "start": start}[request["action"]](request, writer)
    except OSError as error:
        os.write(writer, f"error: {error}\n".encode())
    os.close(writer)
    with open(reader) as pipe:
        lines = pipe.read().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if errors:
        sys.exit(errors[0].removeprefix("error: "))
    print(lines[0])


main()
