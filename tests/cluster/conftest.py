"""One cluster and one installation for the whole run, and a namespace for each test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from tests import localcluster
from tests.cluster.installation import Installation, fresh_namespace, install
from tests.cluster.workloads import Deployment

NAME = os.environ.get("EBBTIDE_TEST_CLUSTER", "ebbtide-test")
_numbers = itertools.count(1)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile before the first test's time runs: it takes minutes on a fresh machine."""
    if session.config.getoption("collectonly") or not any(item.get_closest_marker("cluster") for item in session.items):
        return
    try:
        localcluster.prepare()
    except localcluster.ClusterError as error:
        pytest.exit(str(error), returncode=1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[localcluster.Cluster]:
    """The cluster of this run; it is never one that a kubeconfig of the user's points to."""
    running = localcluster.up(NAME)
    localcluster.ensure_ours(running.kubeconfig)
    yield running
    if os.environ.get("EBBTIDE_KEEP_CLUSTER") != "1":
        running.down()


@pytest.fixture(scope="session")
def installation(cluster: localcluster.Cluster) -> Installation:
    """Ebbtide, installed with Helm as a user does."""
    return install(cluster)


@pytest.fixture
def namespace(cluster: localcluster.Cluster) -> Iterator[str]:
    """A namespace of the test's own, which is gone after it."""
    with fresh_namespace(cluster, f"test-{os.getpid()}-{next(_numbers)}") as name:
        yield name


@pytest.fixture
def worker(installation: Installation, namespace: str) -> Iterator[Deployment]:
    """A Deployment that is not applied yet."""
    deployment = Deployment(installation, namespace)
    yield deployment
    deployment.close()
