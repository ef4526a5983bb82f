"""Which way to etcd: the adapter that the settings name."""

from __future__ import annotations

import ssl

from ebbtide_operator.cluster.certificates import Certificates
from ebbtide_operator.ports import Store
from ebbtide_operator.settings import Settings
from ebbtide_operator.store.gateway import Gateway
from ebbtide_operator.store.tls_files import TlsFiles


def make_store(settings: Settings, certificates: Certificates) -> Store:
    """Return the store that the settings describe; it connects when it is used.

    Raises:
        Etcd3Missing: The settings name the adapter `etcd3`, and its package cannot be imported.
        OSError: The folder with the TLS files has something that cannot be used.
    """
    username = settings.etcd_username or None
    file = settings.etcd_password_file
    password = None if file is None else lambda: file.read_text().strip()
    files = None if settings.etcd_tls is None else TlsFiles(settings.etcd_tls)
    if settings.etcd_adapter == "etcd3":
        # Here, since most installations are without gRPC.
        from ebbtide_operator.store.etcd3 import Etcd3
        from ebbtide_operator.store.etcd3_connection import Pem

        def pem() -> Pem | None:
            held = certificates.etcd_pem if files is None else files.pem()
            return None if held is None else Pem(*held)

        return Etcd3(settings.etcd_endpoints, pem=pem, username=username, password=password)

    def tls() -> ssl.SSLContext:
        return certificates.etcd if files is None else files.context()

    secure = settings.etcd_tls_own or files is not None
    return Gateway(settings.etcd_endpoints, tls=tls if secure else None, username=username, password=password)
