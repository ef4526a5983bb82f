"""What the library raises in the application."""

from __future__ import annotations


class EbbtideError(Exception):
    """Everything that this library raises by itself."""


class Refused(EbbtideError):
    """A task was not admitted.

    Refusals are no failures of the work: do not count them against it, and retry elsewhere or later.

    Attributes:
        why: Short reason: `draining`, `limit` (too many in flight), `rate` (too many new ones) or `breaker` (the last
            ones timed out).
        retry_after_s: Seconds after which another try may be worth while; for HTTP, `Retry-After`.
        scope: Where it was to start.
    """

    def __init__(self, why: str, retry_after_s: float = 1.0, scope: str = "") -> None:
        where = f" by {scope}" if scope else ""
        super().__init__(f"not admitted{where}: {why}; try again elsewhere, or in {retry_after_s:.3g} s")
        self.why = why
        self.retry_after_s = retry_after_s
        self.scope = scope


class TimedOut(EbbtideError, TimeoutError):
    """A task took longer than its limit and was cancelled for it.

    Attributes:
        timeout_s: The limit.
    """

    def __init__(self, name: str, timeout_s: float) -> None:
        super().__init__(f"task {name} took longer than {timeout_s:g} s")
        self.timeout_s = timeout_s


class NotRunning(EbbtideError, RuntimeError):
    """The runtime was used before it started or after it ended."""


class StartFailed(EbbtideError):
    """The start of the process was given up; what had started is stopped. The cause is chained.

    Attributes:
        step: Name of the step that did not start.
    """

    def __init__(self, step: str, why: str) -> None:
        super().__init__(f"step {step} did not start: {why}")
        self.step = step
