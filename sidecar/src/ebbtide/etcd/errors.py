"""How a call to etcd can fail. Every error says what failed, at which endpoint, and whether it may have happened."""

from __future__ import annotations

from ebbtide.etcd import wire


class EtcdError(Exception):
    """Root of the client's errors.

    Attributes:
        endpoint: Base URL that was asked last; None where none was reached.
        may_have_happened: True where a write may have been applied although no answer confirms it.
        code: gRPC status code of the store's answer; None where there was no answer.
    """

    def __init__(
        self,
        message: str,
        *,
        endpoint: str | None = None,
        may_have_happened: bool = False,
        code: int | None = None,
    ) -> None:
        text = message if endpoint is None else f"{message} (at {endpoint})"
        super().__init__(f"{text}; it may have happened" if may_have_happened else text)
        self.endpoint = endpoint
        self.may_have_happened = may_have_happened
        self.code = code


class Unavailable(EtcdError, ConnectionError):
    """No endpoint can be reached, or the store has no leader."""


class TimedOut(EtcdError, TimeoutError):
    """The store did not answer in time."""


class Unauthenticated(EtcdError, PermissionError):
    """The store does not know the caller: the token or the password is missing, wrong or too old."""


class PermissionDenied(EtcdError, PermissionError):
    """The store knows the caller and refuses."""


class GatewayDisabled(EtcdError, LookupError):
    """The endpoint does not serve etcd's JSON gateway under /v3: `--enable-grpc-gateway` is off, or it is no etcd."""


class LeaseNotFound(EtcdError, LookupError):
    """The lease has expired, was revoked, or is not the caller's: grant a new one."""


class LeaseExists(EtcdError, ValueError):
    """The id asked for is in use."""


class Compacted(EtcdError, LookupError):
    """The revision asked for was compacted away."""


class Overloaded(EtcdError):
    """The store refuses for its own protection: too many requests, or a message that is too large."""


class Refused(EtcdError, ValueError):
    """The store cannot make sense of the request, or cannot carry it out."""


class BadAnswer(EtcdError, ValueError):
    """The answer is not what etcd's JSON gateway says."""


class Closed(EtcdError, RuntimeError):
    """The client was closed."""


def error_of(
    what: str,
    status: int,
    failure: wire.Failure,
    *,
    endpoint: str | None,
    write: bool,
) -> EtcdError:
    """Turn an error answer into the exception that fits.

    Args:
        what: What was asked for, as the message's beginning.
        status: HTTP status; 200 where the error came inside a stream.
        failure: The answer's body.
        endpoint: Who answered.
        write: Whether the request would change the store: then an answer that only says "in vain" leaves it open.
    """
    kind = _kind(status, failure)
    message = f"{what}: {failure.message or f'HTTP {status}'}"
    uncertain = write and issubclass(kind, Unavailable | TimedOut)
    return kind(message, endpoint=endpoint, may_have_happened=uncertain, code=failure.code or None)


def _kind(status: int, failure: wire.Failure) -> type[EtcdError]:
    message = failure.message.lower()
    if failure.code == wire.UNAUTHENTICATED or status == 401 or any(sign in message for sign in _LOGIN_SIGNS):
        return Unauthenticated
    if failure.code == wire.PERMISSION_DENIED or status == 403 or any(sign in message for sign in _RIGHT_SIGNS):
        return PermissionDenied
    if "lease not found" in message:
        return LeaseNotFound
    if "lease already exists" in message:
        return LeaseExists
    if "compacted" in message:
        return Compacted
    if failure.code == wire.RESOURCE_EXHAUSTED or status == 429:
        return Overloaded
    if failure.code == wire.DEADLINE_EXCEEDED:
        return TimedOut
    if status == 404:
        return GatewayDisabled
    if failure.code in _CONNECTION_CODES or status >= 500:
        return Unavailable
    return Refused


# A member that ends cancels what its gateway asks of it, and gives no code to what broke on the way.
_CONNECTION_CODES = (wire.CANCELLED, wire.UNKNOWN, wire.UNAVAILABLE)
# etcd answers some of these with "invalid argument", and a watch hides the status code in its cancel reason.
_LOGIN_SIGNS = (
    "unauthenticated",
    "invalid auth token",
    "user name is empty",
    "revision of auth store is old",
    "authentication failed",
)
# A watch hides the code in its cancel reason; an etcd before 3.5 gives none to what it refuses of its administration.
_RIGHT_SIGNS = ("permissiondenied", "auth: permission denied")
