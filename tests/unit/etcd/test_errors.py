from typing import Any

import pytest

from ebbtide.etcd import errors
from ebbtide.etcd.wire import Failure


@pytest.mark.parametrize(
    ("status", "code", "message", "kind"),
    [
        (401, 16, "etcdserver: invalid auth token", errors.Unauthenticated),
        (400, 3, "etcdserver: user name is empty", errors.Unauthenticated),
        (400, 3, "etcdserver: authentication failed, invalid user ID or password", errors.Unauthenticated),
        (200, 14, "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token", errors.Unauthenticated),
        (400, 3, "etcdserver: revision of auth store is old", errors.Unauthenticated),
        (403, 7, "etcdserver: permission denied", errors.PermissionDenied),
        (200, 14, "rpc error: code = PermissionDenied desc = etcdserver: permission denied", errors.PermissionDenied),
        (500, 2, "auth: permission denied", errors.PermissionDenied),
        (404, 5, "etcdserver: requested lease not found", errors.LeaseNotFound),
        (404, 5, "Not Found", errors.GatewayDisabled),
        (404, 0, "404 page not found", errors.GatewayDisabled),
        (400, 9, "etcdserver: lease already exists", errors.LeaseExists),
        (400, 11, "etcdserver: mvcc: required revision has been compacted", errors.Compacted),
        (400, 11, "etcdserver: mvcc: required revision is a future revision", errors.Refused),
        (429, 8, "etcdserver: too many requests", errors.Overloaded),
        (503, 14, "etcdserver: no leader", errors.Unavailable),
        (408, 1, "grpc: the client connection is closing", errors.Unavailable),
        (200, 1, "grpc: the client connection is closing", errors.Unavailable),
        (200, 2, "transport: the stream was reset", errors.Unavailable),
        (502, 0, "<html>", errors.Unavailable),
        (504, 4, "context deadline exceeded", errors.TimedOut),
        (400, 3, "etcdserver: duplicate key given in txn request", errors.Refused),
    ],
)
def test_each_answer_has_its_error(status: int, code: int, message: str, kind: Any) -> None:
    error = errors.error_of("put /a", status, Failure(code, message), endpoint="http://e:1", write=False)
    assert type(error) is kind
    assert error.code == (code or None)
    assert "put /a" in str(error)
    assert message in str(error)
    assert "http://e:1" in str(error)


@pytest.mark.parametrize(
    ("kind", "standard"),
    [
        (errors.Unavailable, ConnectionError),
        (errors.TimedOut, TimeoutError),
        (errors.Unauthenticated, PermissionError),
        (errors.PermissionDenied, PermissionError),
        (errors.LeaseNotFound, LookupError),
        (errors.Refused, ValueError),
    ],
)
def test_each_error_is_a_standard_one_too(kind: Any, standard: Any) -> None:
    error = kind("it failed", endpoint="http://e:1")
    assert isinstance(error, standard)
    assert isinstance(error, errors.EtcdError)
    assert str(error) == "it failed (at http://e:1)"


@pytest.mark.parametrize(
    ("status", "code", "write", "uncertain"),
    [
        (503, 14, True, True),
        (408, 1, True, True),
        (504, 4, True, True),
        (503, 14, False, False),
        (403, 7, True, False),
        (400, 3, True, False),
    ],
)
def test_only_a_write_without_a_clear_answer_may_have_happened(
    status: int, code: int, write: Any, uncertain: Any
) -> None:
    error = errors.error_of("put /a", status, Failure(code, "x"), endpoint=None, write=write)
    assert error.may_have_happened is uncertain
    assert ("may have happened" in str(error)) is uncertain
