"""When a watch that does not tell our own writes is doubted."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ebbtide_operator.store.doubt import AGAIN_S, CALM_S, MOST_PATIENCE_S, PATIENCE_S, Doubt


def test_without_a_write_of_our_own_silence_is_fine() -> None:
    assert Doubt(7).due_at is None


def test_a_write_has_to_be_told_in_time() -> None:
    doubt = Doubt(7)
    doubt.wrote(8, 100.0)
    assert doubt.due_at == 100.0 + PATIENCE_S
    doubt.wrote(9, 100.1)
    assert doubt.due_at == 100.0 + PATIENCE_S
    doubt.heard(9, 100.15)
    assert doubt.due_at is None


def test_what_the_watch_told_before_the_answer_came_is_not_owed() -> None:
    doubt = Doubt(7)
    doubt.heard(8, 100.0)
    doubt.wrote(8, 100.1)
    assert doubt.due_at is None


def test_a_watch_that_says_anything_lives_and_gets_more_time() -> None:
    doubt = Doubt(7)
    doubt.wrote(9, 100.0)
    doubt.heard(8, 100.15)
    assert doubt.due_at == 100.15 + PATIENCE_S


def test_a_doubt_is_not_raised_again_without_a_new_write() -> None:
    doubt = Doubt(7)
    doubt.wrote(8, 100.0)
    doubt.raised(100.2)
    assert doubt.due_at is None
    doubt.wrote(9, 103.0)
    assert doubt.due_at == 103.0 + 2 * PATIENCE_S


def test_patience_doubles_until_a_doubt_proves_right() -> None:
    doubt = Doubt(7)
    now = 100.0
    for _ in range(10):
        doubt.wrote(8, now)
        due_at = doubt.due_at
        assert due_at is not None
        now = due_at
        doubt.raised(now)
    assert doubt.patience_s == MOST_PATIENCE_S
    doubt.right()
    assert doubt.patience_s == PATIENCE_S


def test_old_doubts_are_forgotten_after_a_calm_time() -> None:
    doubt = Doubt(7)
    doubt.wrote(8, 100.0)
    doubt.raised(100.2)
    doubt.heard(8, 100.3)
    doubt.wrote(9, 100.2 + CALM_S)
    assert doubt.patience_s == 2 * PATIENCE_S
    doubt.heard(9, 100.3 + CALM_S)
    doubt.wrote(10, 100.3 + CALM_S)
    assert doubt.patience_s == PATIENCE_S


def test_who_was_away_himself_waits_anew() -> None:
    doubt = Doubt(7)
    doubt.excuse(99.0)
    assert doubt.due_at is None
    doubt.wrote(8, 100.0)
    doubt.excuse(101.0)
    assert doubt.due_at == 101.0 + PATIENCE_S


def test_after_a_list_nothing_is_owed_whatever_its_revision() -> None:
    doubt = Doubt(900)
    doubt.wrote(901, 100.0)
    doubt.began_anew(12)
    assert doubt.due_at is None
    doubt.wrote(13, 101.0)
    assert doubt.due_at == 101.0 + PATIENCE_S


@given(
    st.lists(
        st.tuples(st.floats(0.0, 5.0), st.sampled_from(["wrote", "heard", "behind", "excuse", "right", "idle"])),
        max_size=200,
    )
)
def test_no_course_of_things_raises_doubts_without_a_pause(steps: list[tuple[float, str]]) -> None:
    doubt, revision, now = Doubt(0), 0, 0.0
    raised: list[float] = []
    for pause_s, what in steps:
        until = now + pause_s
        due_at = doubt.due_at
        if due_at is not None and due_at <= until:
            now = max(due_at, now)
            raised.append(now)
            doubt.raised(now)
        now = until
        match what:
            case "wrote":
                revision += 1
                doubt.wrote(revision, now)
            case "heard":
                doubt.heard(revision, now)
            case "behind":
                doubt.heard(revision - 1, now)
            case "excuse":
                doubt.excuse(now)
            case "right":
                doubt.right()
            case _:
                assert what == "idle"
    assert all(later - earlier >= AGAIN_S - 1e-6 for earlier, later in itertools.pairwise(raised))
    assert PATIENCE_S <= doubt.patience_s <= MOST_PATIENCE_S
