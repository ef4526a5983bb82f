"""The registry under threads, where a mistake would let a task slip through the drain."""

import contextvars
import threading

from ebbtide.errors import Refused
from ebbtide.tasks.registry import Registry
from ebbtide.tasks.scope import Scope
from ebbtide.tasks.states import view


def in_threads(count: int, work: object) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)


def test_every_end_is_counted_however_many_threads_count() -> None:
    registry = Registry(lambda: None)
    scope = Scope(registry, "reports", None)

    def work() -> None:
        for _ in range(3000):
            with scope.track():
                pass

    in_threads(4, work)
    assert registry.tally == {"finished": 12000}
    assert len(registry) == 0


def test_nothing_is_admitted_after_a_count_of_zero_behind_a_closed_intake() -> None:
    for _ in range(200):
        registry = Registry(lambda: None)
        scope = Scope(registry, "reports", None)
        drained = threading.Event()
        slipped: list[str] = []
        begun = threading.Barrier(4)

        def work(registry: Registry = registry, scope: Scope = scope, drained: threading.Event = drained) -> None:
            begun.wait(10)  # noqa: B023 (of this round, which all threads end in)
            while True:
                try:
                    with scope.track():
                        if drained.is_set():
                            slipped.append("in")  # noqa: B023
                except Refused:
                    return

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        begun.wait(10)
        registry.intake_open = False
        # A refusal passes through the registry: zero may come late, but is final.
        while len(registry):
            pass
        drained.set()
        for thread in threads:
            thread.join(10)
        assert not slipped


def test_the_end_of_the_last_entry_is_told_of_whoever_it_is() -> None:
    told = threading.Event()
    registry = Registry(told.set)
    scope = Scope(registry, "reports", None)
    with scope.track():
        registry.intake_open = False
        assert not told.is_set()
    assert told.is_set()


def test_what_is_looked_at_may_change_meanwhile() -> None:
    registry = Registry(lambda: None)
    scope = Scope(registry, "reports", None)
    stop = threading.Event()
    problems: list[BaseException] = []

    def come_and_go() -> None:
        while not stop.is_set():
            with scope.track(), scope.track():
                pass

    def look() -> None:
        try:
            for _ in range(2000):
                registry.oldest_age_s()
                view(registry)
                dict(registry.tally)
        except BaseException as error:  # noqa: BLE001 (told below)
            problems.append(error)
        stop.set()

    workers = [threading.Thread(target=come_and_go) for _ in range(2)]
    for worker in workers:
        worker.start()
    look()
    for worker in workers:
        worker.join(10)
    assert not problems


def test_an_entry_that_ends_while_another_thread_abandons_it_makes_no_drain_wait_and_none_end_early() -> None:
    registry = Registry(lambda: None)
    scope = Scope(registry, "reports", None)
    ending, go_on = threading.Event(), threading.Event()

    def while_it_ends(_item: object, _outcome: str) -> None:
        ending.set()
        go_on.wait(10)

    def work() -> None:
        with scope.track():
            registry.on_end = while_it_ends

    thread = threading.Thread(target=work)
    thread.start()
    ending.wait(10)
    registry.on_end = None
    with scope.track():
        (ended, _) = registry.entries()
        registry.abandon([ended], "test")
        go_on.set()
        thread.join(10)
        assert registry.awaited() == 1
    assert registry.awaited() == 0
    registry.forget_ended()
    assert not registry.abandoned
    assert not registry.odd


def test_what_ends_before_its_turn_to_be_abandoned_is_counted_by_how_it_ended() -> None:
    class Slow(Registry):
        def count(self, outcome: str) -> None:
            super().count(outcome)
            if outcome == "abandoned" and second.number in self.live:
                second.__exit__(None, None, None)

    registry = Slow(lambda: None)
    scope = Scope(registry, "reports", None)
    with scope.track():
        second = scope.track()
        second.__enter__()
        registry.abandon(registry.entries(), "test")
        assert registry.tally == {"abandoned": 1, "finished": 1}
        assert len(registry.abandoned) == len(registry) == 1


def test_the_end_of_the_last_entry_is_told_of_while_an_abandoned_one_ends() -> None:
    told: list[int] = []
    registry = Registry(lambda: told.append(registry.awaited()))
    scope = Scope(registry, "reports", None)
    given_up = scope.track()
    elsewhere = contextvars.copy_context()
    elsewhere.run(given_up.__enter__)
    registry.abandon([given_up], "test")
    with scope.track():
        registry.intake_open = False
        elsewhere.run(given_up.__exit__, None, None, None)
        assert told == []
    assert told == [0]


def test_what_ends_right_after_another_thread_abandoned_it_is_counted_once_and_told_of() -> None:
    told: list[int] = []
    registry = Registry(lambda: told.append(registry.awaited()))
    scope = Scope(registry, "reports", None)
    block = scope.track()

    class Seen(set[int]):
        def add(self, number: int) -> None:
            super().add(number)
            block.__exit__(None, None, None)

    block.__enter__()
    registry.intake_open = False
    registry.abandoned = Seen()
    registry.abandon([block], "test")
    assert registry.tally == {"abandoned": 1}
    assert not registry.abandoned
    assert not registry.odd
    assert told == [0]
