"""docs/concepts.md is what somebody reads who was woken: it explains every word that the operator shows."""

import re
from pathlib import Path

import pytest

from ebbtide import environment
from ebbtide.protocol import Outcome, RolloutPhase
from ebbtide_operator.core import annotations, names, reasons

PAGE = Path(__file__).parents[2].joinpath("docs/concepts.md").read_text()
UNSEEN = {reasons.NOT_LEADING, reasons.NOT_MANAGED, reasons.FLOOR_ONLY, reasons.WORKLOAD_DELETED}
"""Reasons of plans that show nothing, because there is no Drain object then."""
SHOWN = {value for name, value in vars(reasons).items() if name.isupper()} - UNSEEN


@pytest.mark.parametrize("word", sorted({*SHOWN, *map(str, RolloutPhase), *map(str, Outcome)}))
def test_the_page_explains_every_word_that_is_shown(word: str) -> None:
    assert f"`{word}`" in PAGE


@pytest.mark.parametrize("name", annotations.KNOWN)
def test_the_page_names_every_annotation(name: str) -> None:
    assert name in PAGE


@pytest.mark.parametrize(
    ("name", "default_s", "longest_s"),
    [
        (names.QUIESCE, environment.DEFAULT_QUIESCE_S, annotations.LONGEST_QUIESCE_S),
        (names.DRAIN_TIMEOUT, environment.DEFAULT_DRAIN_TIMEOUT_S, annotations.LONGEST_DRAIN_S),
        (names.CANCEL_GRACE, environment.DEFAULT_CANCEL_GRACE_S, annotations.LONGEST_CANCEL_GRACE_S),
    ],
)
def test_the_page_has_the_defaults_and_limits_of_the_code(name: str, default_s: float, longest_s: float) -> None:
    row = re.search(rf"^\| `{re.escape(name)}` \| `(\w+)` \| `(\w+)` \|", PAGE, re.MULTILINE)
    assert row is not None
    assert [annotations.duration(text, longest_s) for text in row.groups()] == [default_s, longest_s]
