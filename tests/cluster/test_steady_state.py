"""A quiet cluster is left alone: no API write but the Lease, no etcd write but keep-alives."""

import json
import os
import time
from collections import Counter

import pytest

from tests.cluster.installation import NAMESPACE, Installation, eventually, value
from tests.cluster.workloads import Deployment

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

WATCHED_S = float(os.environ.get("EBBTIDE_STEADY_STATE_S", "90"))


def api_writes(installation: Installation, since: int) -> Counter[str]:
    """Count the writes of Ebbtide's own ServiceAccount in the audit log from a byte offset on."""
    log = installation.cluster.audit_log
    writes: Counter[str] = Counter()
    with log.open() as lines:
        lines.seek(since)
        for line in lines:
            event = json.loads(line)
            if not event["user"]["username"].startswith(f"system:serviceaccount:{NAMESPACE}:"):
                continue
            if event["verb"] in {"create", "update", "patch", "delete", "deletecollection"}:
                writes[f"{event['verb']} {event['objectRef']['resource']}"] += 1
    return writes


def etcd_puts(installation: Installation) -> float:
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/ebbtide-etcd-0:2381/proxy/metrics"
    page = installation.cluster.kubectl("get", "--raw", path).stdout
    return value(page, "etcd_mvcc_put_total") + value(page, "etcd_mvcc_delete_total")


def requests(installation: Installation) -> list[str]:
    """Return the keys of the deletions that were asked for and held; each ends with its lease, a minute later."""
    tls = ("--cacert=/etc/etcd/tls/ca.crt", "--cert=/etc/etcd/tls/tls.crt", "--key=/etc/etcd/tls/tls.key")
    etcdctl = ("etcdctl", f"--endpoints=https://ebbtide-etcd.{NAMESPACE}.svc:2379", *tls)
    command = (*etcdctl, "get", "--prefix", "--keys-only", "/ebbtide/v1/requests/")
    return installation.cluster.kubectl("-n", NAMESPACE, "exec", "ebbtide-etcd-0", "--", *command).stdout.split()


def test_nothing_is_written_while_nothing_drains(installation: Installation, namespace: str) -> None:
    worker = Deployment(installation, namespace)
    worker.apply(4, tasks=2, seconds="forever")
    worker.wait_ready(4)
    reports = f"{worker.name} reports four serving pods"
    eventually(reports, lambda: installation.drain(namespace, worker.name).get("pods", {}).get("serving") == 4)
    eventually("the requests of earlier tests have ended", lambda: not requests(installation), within_s=90, every_s=1)
    settled = etcd_puts(installation)

    def quiet() -> bool:
        nonlocal settled
        before, settled = settled, etcd_puts(installation)
        return before == settled

    eventually("the last writes of the start are through", quiet, every_s=3)
    log = installation.cluster.audit_log
    offset, puts = log.stat().st_size, etcd_puts(installation)
    for number in range(int(WATCHED_S)):
        # Tasks come and go meanwhile: load alone must not cause writes.
        if number % 5 == 0:
            pod = sorted(worker.names())[number % 4]
            worker.kubectl("exec", pod, "--", "sh", "-c", f"echo -n 1 > /tmp/work/t{number}.task")
        time.sleep(1)
    writes = api_writes(installation, offset)
    print(f"{WATCHED_S:.0f} s: API writes {dict(writes)}, etcd writes {etcd_puts(installation) - puts:.0f}")
    leases = writes.pop("update leases", 0) + writes.pop("patch leases", 0)
    token_reviews = writes.pop("create tokenreviews", 0)  # a read in the form of a create: it stores nothing
    assert not writes
    assert leases > 0
    assert token_reviews <= 8 + WATCHED_S / 10
    assert etcd_puts(installation) == puts
