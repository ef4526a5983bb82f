"""A watch knows the store that it stands in by its id, where it is told one."""

import pytest

from ebbtide.etcd import wire
from ebbtide.etcd.errors import Compacted, Unavailable
from ebbtide.etcd.messages import RangeResult, Resync
from ebbtide.etcd.resume import Resumption

URL = "http://etcd"


def a_watch(cluster: int) -> Resumption:
    """Return a watch of one key that stands in a store at revision 10."""
    resumption = Resumption(["/a"], prefix=False)
    resumption.relist([RangeResult((), 10, cluster)], 0.0)
    confirm(resumption, 10, cluster)
    return resumption


def confirm(resumption: Resumption, revision: int, cluster: int) -> None:
    resumption.begin()
    resumption.take(wire.WatchAnswer(1, revision, created=True, cluster=cluster), 0.0, URL)


def relisted(resumption: Resumption, revision: int, cluster: int) -> bool:
    """List again, and return whether that tells of a store that began anew."""
    (resync,) = resumption.relist([RangeResult((), revision, cluster)], 0.0).changes
    assert isinstance(resync, Resync)
    return resync.restarted


def test_another_store_is_told_at_once_though_its_revisions_go_on() -> None:
    resumption = a_watch(7)
    with pytest.raises(Compacted):
        confirm(resumption, 15, 8)
    assert relisted(resumption, 15, 8)
    assert resumption.cluster == 8
    confirm(resumption, 15, 8)
    assert not relisted(resumption, 16, 8)


def test_another_store_that_is_behind_needs_no_proof() -> None:
    assert relisted(a_watch(7), 3, 8)


def test_the_same_store_that_is_behind_does() -> None:
    with pytest.raises(Unavailable):
        relisted(a_watch(7), 3, 7)


@pytest.mark.parametrize(("known", "said"), [(0, 0), (0, 8), (7, 0), (7, 7)])
def test_who_does_not_say_its_id_is_no_other(known: int, said: int) -> None:
    resumption = a_watch(known)
    confirm(resumption, 15, said)
    assert not relisted(resumption, 15, said)
    assert resumption.cluster == (said or known)


def test_a_watch_that_began_after_a_list_learns_the_id_with_its_confirmation() -> None:
    resumption = Resumption(["/a"], prefix=True, after=10, proof_s=0.0)
    confirm(resumption, 10, 7)
    with pytest.raises(Compacted):
        confirm(resumption, 15, 8)


def test_a_further_connection_goes_on_after_what_was_told_and_changes_nothing() -> None:
    resumption = a_watch(7)
    assert resumption.confirmed
    assert resumption.revision == 10
    (target,) = resumption.beside()
    assert target.start_revision == 11
    assert resumption.confirmed
