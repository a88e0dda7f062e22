"""Certificates for tests, made by the openssl command."""

from __future__ import annotations

import subprocess
from pathlib import Path

import grpc

from server.wire.tls import TlsFiles

PATIENCE_S = 20.0
_CONFIG = """\
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
subjectAltName = DNS:localhost, IP:127.0.0.1
extendedKeyUsage = serverAuth
[client]
basicConstraints = critical, CA:FALSE
extendedKeyUsage = clientAuth
"""
_KEYS = {
    "ec": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "rsa": ["-newkey", "rsa:2048"],
}


def openssl(*arguments: str | Path) -> None:
    """Run the openssl command."""
    done = subprocess.run(
        ["openssl", *map(str, arguments)], capture_output=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr.decode()


class Certificates:
    """A server's certificate, and clients' by an authority of theirs and by a stranger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "openssl.cnf").write_text(_CONFIG)
        for name in ("ca", "clients-ca", "strange-ca"):
            self._make(name, "authority")
        self._make("server", "server", "ca")
        self._make("server-rsa", "server", "ca", kind="rsa")
        self._make("client", "client", "clients-ca")
        self._make("stranger", "client", "strange-ca")

    def _make(self, name: str, section: str, by: str | None = None, kind: str = "ec") -> None:
        signed = [] if by is None else ["-CA", self.cert(by), "-CAkey", self.key(by)]
        openssl(
            "req", "-x509", "-config", self.folder / "openssl.cnf", "-extensions", section,
            "-subj", f"/CN={name}", "-days", "2", "-nodes", *_KEYS[kind], *signed,
            "-keyout", self.key(name), "-out", self.cert(name),
        )  # fmt: skip
        self.key(name).chmod(0o600)

    def cert(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def files(self, name: str = "server", *, mutual: bool = False) -> TlsFiles:
        """What a server needs; `mutual`: clients show certificates."""
        client_ca = self.cert("clients-ca") if mutual else None
        return TlsFiles(self.cert(name), self.key(name), client_ca)

    def settings(self, *, mutual: bool = False) -> dict[str, str]:
        """The same, as settings of `headrace serve` and of a worker."""
        files = self.files(mutual=mutual)
        paths = {"tls_cert": files.cert, "tls_key": files.key, "tls_client_ca": files.client_ca}
        return {name: str(path) for name, path in paths.items() if path is not None}

    def credentials(self, client: str | None = None) -> grpc.ChannelCredentials:
        """What a grpcio client needs."""
        mine = [None, None]
        if client is not None:
            mine = [self.key(client).read_bytes(), self.cert(client).read_bytes()]  # type: ignore[list-item]
        return grpc.ssl_channel_credentials(self.cert("ca").read_bytes(), *mine)
