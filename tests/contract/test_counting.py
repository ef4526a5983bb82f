"""The counting itself: a store that loses or repeats something is found out."""

import asyncio
import contextlib
from typing import Any

from ebbtide.etcd import Changed, KeyValue, Removed, Resync
from tests.contract.counting import PREFIX, Reader, Write, missing


class Scripted:
    """A store whose watch says what it was given."""

    def __init__(self, *batches: Any) -> None:
        self._batches = batches
        self.ended = asyncio.Event()

    async def range(self, prefix: str) -> Any:
        return (), 1

    async def watch(self, prefix: str, after: int) -> Any:
        for batch in self._batches:
            yield batch
        self.ended.set()
        await asyncio.Event().wait()


def put(number: int) -> KeyValue:
    return KeyValue(f"{PREFIX}{number}", b"", number, number)


def told(number: int) -> Any:
    return (Changed(put(number), number),)


async def reader_of(*batches: Any) -> Reader:
    store: Any = Scripted(*batches)
    reader = Reader(store)
    await reader.start()
    await store.ended.wait()
    with contextlib.suppress(asyncio.CancelledError):
        await reader.stop()
    return reader


def lost(reader: Reader, *numbers: int, actual: tuple[int, ...], passing: tuple[int, ...] = ()) -> set[str]:
    writes = [Write(put(number).key, number in passing, 0.0, 0.0) for number in numbers]
    return {key.removeprefix(PREFIX) for key in missing(reader, writes, [put(number) for number in actual])}


async def test_a_watch_that_tells_everything_once_is_fine() -> None:
    reader = await reader_of(told(2), told(3), (Removed(put(2).key, 4),))
    assert lost(reader, 2, 3, actual=(3,)) == set()
    assert (reader.duplicates, reader.events) == (0, 3)


async def test_an_event_that_never_came_is_lost() -> None:
    assert lost(await reader_of(told(2), told(4)), 2, 3, 4, actual=(2, 3, 4)) == {"3"}
    assert lost(await reader_of(told(2), told(4)), 2, 3, 4, actual=(2, 4), passing=(3,)) == {"3"}


async def test_a_deletion_that_never_came_is_lost() -> None:
    assert lost(await reader_of(told(2), told(3)), 2, 3, actual=(3,)) == {"2"}


async def test_an_event_that_came_twice_is_a_duplicate() -> None:
    assert (await reader_of(told(2), told(3), told(2))).duplicates == 1
    assert (await reader_of(told(2), (Resync((put(2), put(3)), 3),), told(3))).duplicates == 1


async def test_what_a_list_repeats_is_no_duplicate() -> None:
    reader = await reader_of(told(2), (Resync((put(2), put(3)), 3),), told(4))
    assert reader.duplicates == 0
    assert lost(reader, 2, 3, 4, actual=(2, 3, 4)) == set()


async def test_a_list_speaks_for_what_was_written_and_deleted_before_it() -> None:
    reader = await reader_of((Resync((put(4),), 5),))
    assert lost(reader, 2, 4, actual=(4,), passing=(2,)) == set()
    assert lost(reader, 3, 4, actual=(4,), passing=(2,)) == {"3"}


async def test_a_store_that_began_anew_counts_from_the_beginning() -> None:
    reader = await reader_of(told(9), (Resync((), 1, restarted=True),), told(2))
    assert reader.duplicates == 0
    assert lost(reader, 9, 2, actual=(2,)) == set()
