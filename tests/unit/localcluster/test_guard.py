from pathlib import Path

import pytest

from tests.localcluster.certificates import Pair, kubeconfig
from tests.localcluster.errors import ClusterError
from tests.localcluster.guard import ensure_ours


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    state = tmp_path / "state"
    state.mkdir()
    monkeypatch.setenv("EBBTIDE_STATE", str(state))
    return state


def _write(folder: Path, server: str) -> Path:
    file = folder / "kubeconfig"
    file.write_text(kubeconfig("a", server, b"CA", Pair(b"certificate", b"key")))
    return file


@pytest.mark.parametrize("server", ["https://10.224.1.1:6443", "https://10.239.1.1:6443", "https://127.0.0.1:40001"])
def test_lets_our_own_clusters_pass(state: Path, server: str) -> None:
    ensure_ours(_write(state, server))


@pytest.mark.parametrize("server", ["https://10.0.0.1:6443", "https://prod.example.org", "https://10.240.0.1"])
def test_refuses_a_server_elsewhere(state: Path, server: str) -> None:
    with pytest.raises(ClusterError, match="no local cluster's"):
        ensure_ours(_write(state, server))


def test_refuses_a_file_that_we_did_not_write(state: Path, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="start themselves"):
        ensure_ours(_write(tmp_path, "https://127.0.0.1:6443"))


def test_refuses_a_link_that_leads_out_of_the_state_folder(state: Path, tmp_path: Path) -> None:
    link = state / "kubeconfig"
    link.symlink_to(_write(tmp_path, "https://127.0.0.1:6443"))
    with pytest.raises(ClusterError, match="start themselves"):
        ensure_ours(link)
