"""What is said to etcd and what it says: the data that both clients, the library's and the operator's, hand out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as the store holds it; revisions are the store's own, `lease` is 0 without one."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition of a transaction: one of these fields of a key equals a number (0: no such key, no lease)."""

    key: str
    create_revision: int | None = None
    mod_revision: int | None = None
    lease: int | None = None


@dataclass(frozen=True, slots=True)
class Put:
    """Write one key; `lease` 0 binds it to none."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one key, or with `prefix` every key that starts with it."""

    key: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Changed:
    """A key was written, at `revision`."""

    key_value: KeyValue
    revision: int


@dataclass(frozen=True, slots=True)
class Removed:
    """A key was deleted or its lease expired, at `revision`."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Resync:
    """Everything there is: forget what is not in it. Comes where there is no history to go on from.

    `restarted` is true where the store itself began anew: it was emptied, restored from a backup or replaced. Numbers
    that follow from its revisions (the epoch of an order) start over.
    """

    key_values: tuple[KeyValue, ...]
    revision: int
    restarted: bool = False


@dataclass(frozen=True, slots=True)
class RangeResult:
    """The keys under a prefix, sorted, the revision at which that was true, and the id of the store (0: not known)."""

    key_values: tuple[KeyValue, ...]
    revision: int
    cluster: int = 0


@dataclass(frozen=True, slots=True)
class TxnResult:
    """Whether every comparison held, and the store's revision after the transaction."""

    succeeded: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What a watch learned from one answer of the store: all events of one transaction come together.

    `revision` is the store's revision up to which the watch has seen everything.
    """

    changes: tuple[Changed | Removed | Resync, ...]
    revision: int
