"""Which way to etcd: the adapter that the settings name."""

from __future__ import annotations

import ssl

from ebbtide_operator.cluster.certificates import Certificates
from ebbtide_operator.ports import Store
from ebbtide_operator.settings import Settings
from ebbtide_operator.store.gateway import Gateway


def make_store(settings: Settings, certificates: Certificates) -> Store:
    """Return the store that the settings describe; it connects when it is used.

    Raises:
        Etcd3Missing: The settings name the adapter `etcd3`, and its package cannot be imported.
    """
    username = settings.etcd_username or None
    password = settings.etcd_password_file.read_text().strip() if settings.etcd_password_file else None
    if settings.etcd_adapter == "etcd3":
        # Here, since most installations are without gRPC.
        from ebbtide_operator.store.etcd3 import Etcd3
        from ebbtide_operator.store.etcd3_connection import Pem

        def pem() -> Pem | None:
            if settings.etcd_tls is not None:
                return Pem(*((settings.etcd_tls / name).read_bytes() for name in ("ca.crt", "tls.crt", "tls.key")))
            return None if certificates.etcd_pem is None else Pem(*certificates.etcd_pem)

        return Etcd3(settings.etcd_endpoints, pem=pem, username=username, password=password)
    tls = _context(settings, certificates)
    return Gateway(settings.etcd_endpoints, tls=tls, username=username, password=password)


def _context(settings: Settings, certificates: Certificates) -> ssl.SSLContext | None:
    if settings.etcd_tls_own:
        return certificates.etcd
    if settings.etcd_tls is None:
        return None
    context = ssl.create_default_context(cafile=str(settings.etcd_tls / "ca.crt"))
    context.load_cert_chain(settings.etcd_tls / "tls.crt", settings.etcd_tls / "tls.key")
    return context
