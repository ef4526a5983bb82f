"""The TLS files for an etcd that is not ours: others replace them, as cert-manager and the kubelet do, while we run."""

from __future__ import annotations

import logging
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from ebbtide_operator.settings import TLS_FILES

LOOK_S = 1.0
"""How long a look at the files is good for."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files said at one moment."""

    context: ssl.SSLContext
    pem: tuple[bytes, bytes, bytes]
    """Authority, certificate and key."""


class TlsFiles:
    """Whom to trust and who we are, as a folder with ca.crt, tls.crt and tls.key has it.

    Files that cannot be used are logged; until they can, what was loaded before goes on being used.

    Args:
        folder: The folder.

    Raises:
        OSError: A file cannot be read at the start, or is no certificate, or the key is another's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = self._look()
        self._loaded = self._load()
        self._complained = False
        self._look_at = time.monotonic() + LOOK_S

    def context(self) -> ssl.SSLContext:
        """Return the context for new connections; another one where the files were replaced."""
        return self._current().context

    def pem(self) -> tuple[bytes, bytes, bytes]:
        """Return authority, certificate and key."""
        return self._current().pem

    def _current(self) -> Loaded:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            try:
                self._follow()
            except OSError as error:
                if not self._complained:
                    logger.warning("store.tls.unusable", extra={"folder": str(self._folder), "error": str(error)})
                self._complained = True
            else:
                self._complained = False
        return self._loaded

    def _follow(self) -> None:
        seen = self._look()
        if seen == self._seen:
            return
        loaded = self._load()
        # Replaced in the midst of it, the certificate may be one renewal's and the authority another's.
        if self._look() == seen:
            self._seen, self._loaded = seen, loaded
            logger.info("store.tls.renewed", extra={"folder": str(self._folder)})

    def _look(self) -> list[tuple[int, int, int]]:
        stats = [(self._folder / name).stat() for name in TLS_FILES]
        return [(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats]

    def _load(self) -> Loaded:
        authority, certificate, key = (self._folder / name for name in TLS_FILES)
        # A context of its own each time: one that is in use would be left with half of what does not fit together.
        context = ssl.create_default_context(cafile=str(authority))
        context.load_cert_chain(certificate, key)
        return Loaded(context, (authority.read_bytes(), certificate.read_bytes(), key.read_bytes()))
