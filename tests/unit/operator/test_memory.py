"""What connections leave behind is given back, and when."""

import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide_operator.serve import memory
from ebbtide_operator.serve.memory import Trimming


class Trims:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def looked(counts: list[int]) -> int:
    """Return how often is trimmed where so many connections are open, one look after the other."""
    trims = Trims()
    trimming = Trimming(trims, least=100)
    for count in counts:
        trimming.look(count)
    return trims.count


def test_trims_once_after_many_connections_closed() -> None:
    assert looked([1000, 2000, 2000, 1000, 1000, 1000]) == 1


def test_waits_until_the_wave_is_over() -> None:
    assert looked([2000, 1800, 1600, 1400, 1200]) == 0
    assert looked([2000, 1800, 1600, 1400, 1200, 1199]) == 1


def test_adds_up_what_closes_one_by_one() -> None:
    assert looked(list(range(1000, 899, -1))) == 1
    assert looked(list(range(1000, 900, -1))) == 0


def test_the_usual_coming_and_going_does_not_count() -> None:
    assert looked([1000, 950, 1000, 940, 1010, 960] * 20) == 0


def test_each_wave_counts_again() -> None:
    assert looked([1000, 0, 0, 1000, 0, 0]) == 2


@given(st.lists(st.integers(0, 3000)))
def test_never_trims_more_often_than_so_many_connections_closed(counts: list[int]) -> None:
    closed = sum(max(before - after, 0) for before, after in pairwise(counts))
    assert looked(counts) <= closed // 100


HOLDING = """
import resource
from pathlib import Path

from ebbtide_operator.serve import memory


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 2**20


{prepare}
before = resident()
pieces = [bytearray({size}) for _ in range({count})]
for piece in pieces:
    piece[:] = b"x" * len(piece)
# What stays lies between what goes, as the pieces of connections do.
kept = pieces[::50]
first = pieces.pop()
del piece, pieces
{then}
print(before, resident())
"""


def growth(**parts: object) -> int:
    """Return by how many MiB a process grew that took 100 MiB and freed 98 of them."""
    script = HOLDING.format(**{"prepare": "", "then": "", **parts})
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=50).stdout
    before, after = map(int, said.split())
    return after - before


@pytest.mark.skipif(memory._glibc("malloc_trim") is None, reason="there is another C library")
def test_what_was_freed_between_what_is_in_use_is_given_back() -> None:
    small = {"size": 50 * 1024, "count": 2000}
    assert growth(**small) > 50, "the C library keeps it by itself"
    assert growth(**small, then="memory.trim()") < 20


@pytest.mark.skipif(memory._glibc("mallopt") is None, reason="there is another C library")
def test_large_pieces_are_given_back_also_after_the_first_was_freed() -> None:
    large = {"size": 250 * 1024, "count": 400}
    freed_one = "bytearray(300 * 1024)"
    assert growth(**large, prepare=freed_one) > 50, "the C library maps the first of them only"
    assert growth(**large, prepare=f"memory.map_large_pieces()\n{freed_one}") < 20


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    memory._glibc.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    try:
        assert memory._glibc("malloc_trim") is None
        memory.trim()
        memory.map_large_pieces()
    finally:
        memory._glibc.cache_clear()
