import datetime as dt
from pathlib import Path

import pytest

from ebbtide_operator.cluster.authority import Leaf, Pair, make_authority, make_leaf
from ebbtide_operator.store import tls_files
from ebbtide_operator.store.tls_files import TlsFiles

NOW = dt.datetime.now(dt.UTC)
LEAF = Leaf("ebbtide", server=False, client=True)
FIRST, SECOND = make_authority("first", NOW), make_authority("second", NOW)


@pytest.fixture(autouse=True)
def _look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_files, "LOOK_S", 0.0)


def issue(folder: Path, authority: Pair) -> Pair:
    pair = make_leaf(authority, LEAF, NOW)
    for name, data in (("ca.crt", authority.certificate), ("tls.crt", pair.certificate), ("tls.key", pair.key)):
        # As the kubelet does: clocks of file systems are too coarse to tell two quick writes to one file apart.
        (folder / "new").write_bytes(data)
        (folder / "new").rename(folder / name)
    return pair


def trusted(files: TlsFiles) -> list[str]:
    return [dict(part[0] for part in one["subject"])["commonName"] for one in files.context().get_ca_certs()]  # type: ignore[misc]


def test_what_is_not_replaced_is_read_once(tmp_path: Path) -> None:
    issue(tmp_path, FIRST)
    files = TlsFiles(tmp_path)
    assert files.context() is files.context()
    assert files.pem() is files.pem()


def test_replaced_files_are_taken_and_the_old_authority_is_not_trusted_any_more(tmp_path: Path) -> None:
    issue(tmp_path, FIRST)
    files = TlsFiles(tmp_path)
    (before,) = trusted(files)
    pair = issue(tmp_path, SECOND)
    (after,) = trusted(files)
    assert after != before
    assert files.pem() == (SECOND.certificate, pair.certificate, pair.key)


@pytest.mark.parametrize("name", ["ca.crt", "tls.crt", "tls.key"])
@pytest.mark.parametrize("content", [None, b"", b"no certificate", SECOND.key])
def test_what_cannot_be_used_changes_nothing_until_it_can(
    tmp_path: Path, name: str, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    issue(tmp_path, FIRST)
    files = TlsFiles(tmp_path)
    context, pem = files.context(), files.pem()
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for _ in range(3):
        assert files.context() is context
        assert files.pem() is pem
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == ["store.tls.unusable"]
    issue(tmp_path, SECOND)
    assert files.context() is not context


def test_a_renewal_that_is_in_the_midst_of_its_files_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue(tmp_path, FIRST)
    files = TlsFiles(tmp_path)
    context = files.context()
    issue(tmp_path, SECOND)
    load = files._load

    def load_meanwhile() -> tls_files.Loaded:
        loaded = load()
        issue(tmp_path, FIRST)
        return loaded

    monkeypatch.setattr(files, "_load", load_meanwhile)
    assert files.context() is context
    monkeypatch.undo()
    monkeypatch.setattr(tls_files, "LOOK_S", 0.0)
    pem = files.pem()
    assert pem[0] == FIRST.certificate


def test_files_that_cannot_be_used_at_the_start_are_an_error(tmp_path: Path) -> None:
    issue(tmp_path, FIRST)
    (tmp_path / "tls.key").write_bytes(SECOND.key)
    with pytest.raises(OSError, match=r"(?i)key"):
        TlsFiles(tmp_path)
