"""Which endpoint to ask: random order for the fleet, the same one as long as it answers, the next one when it fails."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the gateway is served."""

    url: str
    tls: bool
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Read a base URL such as `https://etcd.example:2379`.

        Raises:
            ValueError: The URL has no scheme, no host, or parts that an endpoint cannot have.
        """
        parts = urlsplit(url.strip())
        if parts.scheme not in {"http", "https"}:
            raise ValueError(f"endpoint {url!r}: must start with http:// or https://")
        if not parts.hostname:
            raise ValueError(f"endpoint {url!r}: names no host")
        if parts.username is not None or parts.query or parts.fragment or parts.path not in {"", "/"}:
            raise ValueError(f"endpoint {url!r}: must be scheme, host and port only")
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise ValueError(f"endpoint {url!r}: {error}") from error
        return cls(f"{parts.scheme}://{parts.netloc}", parts.scheme == "https", parts.hostname, port)


class Rotation:
    """Remember which endpoint answers. Not locked: two failures at once may skip one endpoint, which harms nobody."""

    def __init__(self, urls: Sequence[str], shuffle: random.Random) -> None:
        if isinstance(urls, str):
            raise ValueError("endpoints: must be a sequence of URLs, not one string")  # noqa: TRY004 (as the others)
        self._endpoints = [Endpoint.parse(url) for url in urls]
        if not self._endpoints:
            raise ValueError("endpoints: name at least one URL")
        shuffle.shuffle(self._endpoints)
        self._at = 0

    def __len__(self) -> int:
        return len(self._endpoints)

    @property
    def current(self) -> Endpoint:
        return self._endpoints[self._at]

    def fail(self, endpoint: Endpoint) -> None:
        """Move on, unless somebody else already did."""
        if self.current == endpoint:
            self._at = (self._at + 1) % len(self._endpoints)


class Backoff:
    """Say how long to wait before the next try: not at all at first, then up to a doubling limit, at random.

    Full jitter, since a restarted store meets every pod of the cluster at once.
    """

    def __init__(self, chance: random.Random, *, first_s: float = 0.1, most_s: float = 2.0) -> None:
        self._chance = chance
        self._first_s = first_s
        self._most_s = most_s
        self._failures = 0

    def reset(self) -> None:
        self._failures = 0

    def next_s(self, most_s: float | None = None) -> float:
        """Return the seconds to wait now; `most_s` overrides the limit for this try."""
        self._failures += 1
        if self._failures == 1:
            return 0.0
        limit = min(most_s or self._most_s, self._first_s * 2.0 ** min(self._failures - 1, 30))
        return self._chance.uniform(0.0, limit)
