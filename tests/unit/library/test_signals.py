import asyncio
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from ebbtide.lifecycle.signals import Signals


@pytest.fixture(autouse=True)
def untouched() -> object:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_earlier_handler_runs_too_except_for_the_second_which_hurries_the_drain_alone() -> None:
    seen: list[str] = []
    signal.signal(signal.SIGTERM, lambda *_: seen.append("server"))
    signals = Signals(lambda name, count: seen.append(f"{name} {count}"))
    assert signals.install()
    for _ in range(3):
        signal.raise_signal(signal.SIGTERM)
    assert seen == ["SIGTERM 1", "server", "SIGTERM 2", "SIGTERM 3", "server"]


def outcome(steps: str) -> tuple[int, list[str]]:
    """Return how a process ended and what it printed; it prints how many signals came, and what the steps print."""
    script = "import os, signal\nfrom ebbtide.lifecycle.signals import Signals\n"
    script += "signals = Signals(lambda _name, count: print(count, flush=True))\n" + textwrap.dedent(steps)
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False)
    return answer.returncode, answer.stdout.split()


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_the_third_signal_ends_a_process_that_has_no_handler(number: str) -> None:
    code, printed = outcome(f"""
        signals.install()
        for number in (signal.SIGTERM, signal.SIGTERM, signal.{number}):
            signal.raise_signal(number)
        print("here")
    """)
    assert code == -signal.Signals[number]
    assert printed == ["1", "2", "3"]


def test_no_signal_ends_a_process_that_has_a_handler_on_top_or_wants_none() -> None:
    on_top = """
        signals.install()
        ours = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda number, frame: ours(number, frame))
    """
    ignored = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signals.install()
    """
    for before in (on_top, ignored):
        steps = textwrap.dedent(before) + 'for _ in range(4):\n    signal.raise_signal(signal.SIGTERM)\nprint("here")'
        assert outcome(steps) == (0, ["1", "2", "3", "4", "here"])


def test_uninstalling_puts_the_earlier_handler_back() -> None:
    seen: list[str] = []
    signal.signal(signal.SIGTERM, lambda *_: seen.append("server"))
    signals = Signals(lambda *_: seen.append("ours"))
    signals.install()
    signals.uninstall()
    signal.raise_signal(signal.SIGTERM)
    assert seen == ["server"]


def test_a_later_handler_of_somebody_else_is_noticed_and_not_removed() -> None:
    signals = Signals(lambda *_: None)
    signals.install()
    later = signal.signal(signal.SIGTERM, lambda *_: None)
    assert later is not None
    assert signals.displaced == ("SIGTERM",)
    present = signal.getsignal(signal.SIGTERM)
    signals.uninstall()
    assert signal.getsignal(signal.SIGTERM) is present


def test_outside_the_main_thread_nothing_is_installed() -> None:
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(Signals(lambda *_: None).install()))
    thread.start()
    thread.join()
    assert answers == [False]


def test_the_handlers_of_an_event_loop_still_run() -> None:
    script = textwrap.dedent("""
        import asyncio, os, signal
        from ebbtide.lifecycle.signals import Signals
        async def main():
            loop, stop, ours = asyncio.get_running_loop(), asyncio.Event(), []
            loop.add_signal_handler(signal.SIGTERM, stop.set)
            Signals(lambda name, count: ours.append(name)).install()
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(stop.wait(), 5)
            print(ours)
        asyncio.run(main())
    """)
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True)
    assert answer.stdout.strip() == "['SIGTERM']"


async def test_a_signal_wakes_a_loop_that_is_about_to_wait() -> None:
    signals = Signals(lambda _name, _count: None)
    before = signal.set_wakeup_fd(-1)
    try:
        signals.install()
        descriptor = signal.set_wakeup_fd(-1)
        assert descriptor != -1, "whatever comes before the wait is written there, and ends it"
        signal.set_wakeup_fd(descriptor)
        signals.uninstall()
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.set_wakeup_fd(before)


async def test_who_wakes_the_loop_already_goes_on_doing_so() -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGWINCH, lambda: None)
    try:
        theirs = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(theirs)
        signals = Signals(lambda _name, _count: None)
        signals.install()
        signals.uninstall()
        assert signal.set_wakeup_fd(theirs) == theirs
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
