"""Where workers meet: one listens, nobody gets in its way, and strangers stay outside."""

import json
import os
import socket
import struct
import threading
import uuid
from pathlib import Path

import pytest

from ebbtide.workers.channel import Channel
from ebbtide.workers.place import MARKS, Place, is_ours


@pytest.fixture(params=["abstract", "path"])
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"@ebbtide-test/{uuid.uuid4().hex}" if request.param == "abstract" else str(tmp_path / "workers")


def test_one_listens_and_the_next_one_does_when_it_is_gone(name: str) -> None:
    first, second = Place(name), Place(name)
    listener = first.claim()
    assert listener is not None
    assert second.claim() is None
    with second.call() as calling, listener.accept()[0] as accepted:
        assert is_ours(calling)
        assert is_ours(accepted)
    first.give_up(listener)
    with pytest.raises(OSError, match="refused"):
        second.call()
    listener = second.claim()
    assert listener is not None
    second.give_up(listener)


def test_a_mark_is_seen_as_long_as_its_worker_is_there(name: str) -> None:
    known, new = Place(name), Place(name)
    assert not new.marked()
    known.mark()
    known.mark()
    assert new.marked()
    known.release()
    assert not new.marked()


def test_more_workers_than_marks_do_without() -> None:
    name = f"@ebbtide-test/{uuid.uuid4().hex}"
    many = [Place(name) for _ in range(MARKS + 2)]
    for place in many:
        place.mark()
    assert Place(name).marked()
    for place in many:
        place.release()
    assert not Place(name).marked()


def test_a_socket_that_a_killed_worker_left_behind_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "workers"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    place = Place(str(path))
    listener = place.claim()
    assert listener is not None
    place.give_up(listener)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Place(str(tmp_path / "missing/workers")).claim()


class Stranger:
    def __init__(self, uid: int) -> None:
        self._uid = uid

    def getsockopt(self, *_: object) -> bytes:
        return struct.pack("3i", 1, self._uid, 1)


@pytest.mark.parametrize(("uid", "ours"), [(0, True), (os.geteuid(), True), (os.geteuid() + 1, False)])
def test_only_ones_own_user_and_root_belong(uid: int, ours: bool) -> None:
    assert is_ours(Stranger(uid)) is ours  # type: ignore[arg-type]


def test_messages_arrive_whole_and_in_order_whatever_their_length() -> None:
    one, other = map(Channel, socket.socketpair())
    sent = [{"number": number, "text": "x" * (7 * number**4)} for number in range(15)]
    sending = threading.Thread(target=lambda: [one.send(message) for message in sent])
    sending.start()
    received: list[object] = []
    while len(received) < len(sent):
        messages = other.receive()
        assert messages is not None
        received += messages
    sending.join()
    assert received == sent
    one.close()
    assert other.receive() is None
    other.close()


def test_what_is_no_message_ends_the_connection() -> None:
    mine, theirs = socket.socketpair()
    channel = Channel(mine)
    theirs.sendall(json.dumps({"fine": 1}).encode() + b"\n")
    assert channel.receive() == [{"fine": 1}]
    theirs.sendall(b"no json\n")
    assert channel.receive() is None
    channel.close()
    theirs.close()


def test_a_frozen_receiver_is_given_up_and_does_not_block_the_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebbtide.workers.channel.SEND_S", 0.05)
    one, other = map(Channel, socket.socketpair())
    while one.send({"text": "x" * 100_000}):
        pass
    assert one.receive() is None, "half a message may be out"
    one.close()
    other.close()
