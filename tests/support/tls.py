"""Certificates for tests, made by the openssl command."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from server.wire.tls import TlsFiles

PATIENCE_S = 20.0
_CONFIG = """\
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
subjectAltName = DNS:localhost, IP:127.0.0.1
extendedKeyUsage = serverAuth
[client]
basicConstraints = critical, CA:FALSE
extendedKeyUsage = clientAuth
[named]
basicConstraints = critical, CA:FALSE
subjectAltName = URI:spiffe://shop/batch, DNS:batch.shop.example
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
        self._make("named", "named", "clients-ca")
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

    def revoking(self, name: str) -> Path:
        """The clients' authority together with its list, on which this one's certificate is."""
        authority = x509.load_pem_x509_certificate(self.cert("clients-ca").read_bytes())
        key = serialization.load_pem_private_key(self.key("clients-ca").read_bytes(), None)
        revoked = x509.load_pem_x509_certificate(self.cert(name).read_bytes())
        now = datetime.now(UTC)
        entry = x509.RevokedCertificateBuilder(revoked.serial_number, now).build()
        listed = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(authority.subject)
            .last_update(now - timedelta(hours=1))
            .next_update(now + timedelta(days=1))
            .add_revoked_certificate(entry)
            .sign(key, hashes.SHA256())  # type: ignore[arg-type]
        )
        path = self.folder / f"without-{name}.pem"
        pem = listed.public_bytes(serialization.Encoding.PEM)
        path.write_bytes(self.cert("clients-ca").read_bytes() + pem)
        return path

    def credentials(self, client: str | None = None) -> grpc.ChannelCredentials:
        """What a grpcio client needs."""
        mine = [None, None]
        if client is not None:
            mine = [self.key(client).read_bytes(), self.cert(client).read_bytes()]  # type: ignore[list-item]
        return grpc.ssl_channel_credentials(self.cert("ca").read_bytes(), *mine)
