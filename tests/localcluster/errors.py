"""Errors a person reads: each says what is wrong and what to do."""


class ClusterError(RuntimeError):
    """The local cluster can't do what was asked; the message names the fix."""
