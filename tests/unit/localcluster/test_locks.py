import threading
from pathlib import Path

from tests.localcluster.locks import exclusive
from tests.localcluster.progress import duration


def test_one_holder_at_a_time_even_when_the_file_is_removed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    inside, most, problems = 0, 0, []

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with exclusive(lock, "the others", remove=True):
                inside += 1
                most = max(most, inside)
                if inside != 1:
                    problems.append(inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert most == 1
    assert not lock.exists()


def test_the_file_stays_unless_told(tmp_path: Path) -> None:
    with exclusive(tmp_path / "sub" / "lock", "nobody"):
        assert (tmp_path / "sub" / "lock").exists()
    assert (tmp_path / "sub" / "lock").exists()


def test_durations_read_as_people_say_them() -> None:
    assert [duration(seconds) for seconds in (0.04, 4.24, 59.9, 60, 280, 3599.6)] == [
        *("0.0 s", "4.2 s", "59.9 s", "1 min 0 s", "4 min 40 s", "60 min 0 s")
    ]
