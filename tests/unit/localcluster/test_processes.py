import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.localcluster import processes
from tests.localcluster.errors import ClusterError
from tests.localcluster.processes import Process


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        ["sleep", "60"], env={"PATH": os.environ["PATH"], processes.MARK: f"/test/{os.getpid()}"}
    )
    yield process
    process.kill()
    process.wait()


def _start(pid: int) -> int:
    start = processes.start_time(pid)
    assert start is not None
    return start


def test_ends_a_process_that_matches_its_start_time(sleeper: subprocess.Popen[bytes]) -> None:
    processes.kill({sleeper.pid: _start(sleeper.pid)})
    assert sleeper.wait() == -signal.SIGKILL


def test_leaves_a_process_alone_that_started_at_another_time(sleeper: subprocess.Popen[bytes]) -> None:
    processes.kill({sleeper.pid: _start(sleeper.pid) - 1})
    assert sleeper.poll() is None


def test_does_nothing_for_a_process_that_is_gone(sleeper: subprocess.Popen[bytes]) -> None:
    start = _start(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    processes.kill({sleeper.pid: start})


def test_says_which_process_does_not_end() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(ClusterError, match=rf"process {process.pid} .*SIGTERM"):
            processes.kill({process.pid: _start(process.pid)}, within_s=0.1, sign=signal.SIGTERM)
        process.kill()


def test_a_zombie_counts_as_gone(sleeper: subprocess.Popen[bytes]) -> None:
    start = _start(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert processes.start_time(sleeper.pid) is None
    assert not Process("a", sleeper.pid, start, {}).alive()


def test_finds_processes_by_the_mark_of_their_cluster_and_no_others(sleeper: subprocess.Popen[bytes]) -> None:
    mark = f"/test/{os.getpid()}"
    assert list(processes.marked(mark)) == [sleeper.pid]
    assert list(processes.marked(mark[:-1])) == []


def test_a_program_name_with_parentheses_and_spaces_is_no_trouble(tmp_path: Path) -> None:
    program = tmp_path / ") S 1 (x"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "60"]) as process:
        assert abs(_start(process.pid) - _start(os.getpid())) < 10**9
        process.kill()


def test_a_record_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "etcd.json").write_text('{"component": "etcd", "pid": 1, "start": 2, "request": {"log": "/log"}}')
    (tmp_path / "kubelet@node-1.json").write_text('{"component": "kube')
    assert list(processes.recorded(tmp_path)) == ["etcd"]


def test_a_failure_shows_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "etcd.log"
    log.write_text("\n".join(f"line {number}" for number in range(100)))
    told = processes.failures([Process("etcd", os.getpid(), 1, {"log": str(log)})])
    assert "etcd has ended" in told
    assert "line 99" in told
    assert "line 10\n" not in told
    assert processes.failures([Process("self", os.getpid(), _start(os.getpid()), {"log": str(log)})]) == ""


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    request = {
        "action": "start",
        "sandbox": os.getpid(),
        "argv": ["/no/such/program"],
        "env": {processes.MARK: "/test"},
        "log": str(tmp_path / "log"),
    }
    with pytest.raises(ClusterError, match="starting tool failed"):
        processes.launch("tool", request, tmp_path / "records")
    assert processes.recorded(tmp_path / "records") == {}
