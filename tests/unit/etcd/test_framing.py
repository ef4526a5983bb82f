from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide.etcd.framing import ChunkedDecoder, FramingError, LineSplitter


def split_at(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def chunked(chunks: list[bytes], end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end


cuts = st.lists(st.integers(0, 10_000), max_size=12)


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=8), cuts)
def test_chunks_are_undone_however_they_are_cut(chunks: Any, places: Any) -> None:
    decoder = ChunkedDecoder()
    body = b"".join(decoder.feed(piece) for piece in split_at(chunked(chunks), places))
    assert body == b"".join(chunks)
    assert decoder.finished


@given(
    st.lists(
        st.binary(min_size=1, max_size=30).filter(lambda line: b"\n" not in line and line.strip(b"\r")), max_size=8
    ),
    cuts,
)
def test_lines_are_found_however_they_are_cut(lines: Any, places: Any) -> None:
    splitter = LineSplitter()
    data = b"".join(line + b"\n" for line in lines)
    found = [line for piece in split_at(data, places) for line in splitter.feed(piece)]
    assert found == [line.rstrip(b"\r") for line in lines]


def test_the_rest_of_a_line_is_kept_for_its_end() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"ab") == []
    assert splitter.feed(b"c\nd") == [b"abc"]
    assert splitter.feed(b"\n") == [b"d"]


def test_a_line_without_an_end_is_refused() -> None:
    splitter = LineSplitter(most_bytes=10)
    assert splitter.feed(b"x" * 10) == []
    with pytest.raises(FramingError, match="longer than 10"):
        splitter.feed(b"x")


def test_a_chunk_extension_is_no_part_of_the_size() -> None:
    assert ChunkedDecoder().feed(b"2;name=value\r\nok\r\n") == b"ok"


@pytest.mark.parametrize(
    "data", [b"-1\r\n", b"0x5\r\n", b"1_0\r\nx", b"\r\n", b"zz\r\n", b"1\r\nab\r\n", b"f" * 17 + b"\r\n", b"1" * 2000]
)
def test_a_malformed_chunk_is_refused(data: Any) -> None:
    with pytest.raises(FramingError):
        ChunkedDecoder().feed(data)
