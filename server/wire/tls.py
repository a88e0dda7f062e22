"""TLS for the ports that clients call: versions, ciphers and ALPN as HTTP/2 demands them.

The files are PEM and are read when a worker starts. What is wrong with them is said with the
setting's name, before anything listens.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import (
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)

_LOG = logging.getLogger("headrace")

# Makes of a client's certificate (DER, verified) who it is to the handlers; once a connection.
Identify = Callable[[bytes], object]
H2, HTTP1 = "h2", "http/1.1"  # what ALPN calls the protocols of our ports

# RFC 9113 §9.2.2 blocks all but AEAD suites with an ephemeral key exchange. It is a list of TLS
# 1.2: what TLS 1.3 has is all of that kind. SECLEVEL 2 refuses keys below 112 bits of security.
_TLS12_CIPHERS = "@SECLEVEL=2:ECDHE+AESGCM:ECDHE+CHACHA20"
_CERTIFICATE, _KEY = b"-----BEGIN CERTIFICATE-----", b"PRIVATE KEY-----"
_REVOKED = b"-----BEGIN X509 CRL-----"
_READABLE_BY_ALL = 0o004


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A certificate (with its chain), its key and, where clients need one too, who signs theirs.

    Beside those who sign may stand what they have revoked (CRLs): then each needs a list that is
    not out of date, and who is on it is refused.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def pem(self) -> tuple[bytes, bytes, bytes | None]:
        """Read the files: (certificate chain, key, CA of the clients).

        Raises a HeadraceError that names the setting whose file is missing or not what it should
        be.
        """
        cert = _read("tls_cert", self.cert, _CERTIFICATE, "a PEM certificate")
        key = _read("tls_key", self.key, _KEY, "a PEM private key")
        if self.client_ca is None:
            return cert, key, None
        return cert, key, _read("tls_client_ca", self.client_ca, _CERTIFICATE, "PEM certificates")

    def context(self, protocol: str) -> ssl.SSLContext:
        """Return what a port that speaks `protocol` (its ALPN name) opens connections with.

        Raises as `pem`, and when the key is not the certificate's.
        """
        _, _, client_ca = self.pem()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(_TLS12_CIPHERS)
        # A renegotiation costs a client nothing and the server a handshake; compression told what
        # it compressed (CVE-2012-4929). HTTP/2 forbids both.
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols([protocol])
        try:
            context.load_cert_chain(self.cert, self.key, password=_no_password)
        except ssl.SSLError as error:
            raise _explained(error, self) from None
        if client_ca is not None:
            assert self.client_ca is not None
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise InvalidArgumentError(
                    f"{self.client_ca} cannot be used as a CA of clients",
                    where="tls_client_ca",
                    expected="PEM certificates",
                    got=error.reason,
                    mend="check --tls-client-ca",
                ) from None
            context.verify_mode = ssl.CERT_REQUIRED
            if revokes(client_ca):
                context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        return context

    def check(self) -> None:
        """Raise as `context`; warn of a key that every user of this machine may read."""
        self.context(H2)
        if self.key_is_for_all():
            _LOG.warning("tls_key: every user of this machine may read %s; chmod o-r it", self.key)

    def key_is_for_all(self) -> bool:
        """Whether every user of this machine may read the key."""
        return bool(self.key.stat().st_mode & _READABLE_BY_ALL)


def revokes(client_ca: bytes | None) -> bool:
    """Whether clients' certificates are looked for in a list of revoked ones, beside their CA."""
    return client_ca is not None and _REVOKED in client_ca


def identity_of(transport: asyncio.BaseTransport, identify: Identify | None) -> object:
    """Return who a connection's client is; None where nobody asks, or it has shown nothing."""
    if identify is None:
        return None
    tls = transport.get_extra_info("ssl_object")
    certificate = None if tls is None else tls.getpeercert(binary_form=True)
    return None if certificate is None else identify(certificate)


def tls_files(cert: str | None, key: str | None, client_ca: str | None) -> TlsFiles | None:
    """Return the files that the settings name; None: no TLS. Raises InvalidArgumentError for half
    of a pair."""
    if cert is None and key is None:
        if client_ca is not None:
            raise InvalidArgumentError(
                "tls_client_ca is set and TLS is off",
                mend="give --tls-cert and --tls-key too: clients show certificates over TLS only",
            )
        return None
    if cert is None or key is None:
        given, missing = ("tls_key", "tls_cert") if cert is None else ("tls_cert", "tls_key")
        raise InvalidArgumentError(
            f"{given} is set and {missing} is not",
            expected="both or neither",
            mend=f"give --{missing.replace('_', '-')} (it may name the same file)",
        )
    return TlsFiles(Path(cert), Path(key), None if client_ca is None else Path(client_ca))


def _read(setting: str, path: Path, mark: bytes, expected: str) -> bytes:
    mend = f"check --{setting.replace('_', '-')}"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(
            f"no file {path}", where=setting, expected=expected, mend=mend
        ) from None
    except PermissionError:
        raise PermissionDeniedError(
            f"{path} cannot be read",
            where=setting,
            mend="let the user that runs headrace read it",
        ) from None
    except OSError as error:
        raise InvalidArgumentError(
            f"{path} cannot be read",
            where=setting,
            expected=expected,
            got=error.strerror,
            mend=mend,
        ) from None
    if mark not in text:
        raise InvalidArgumentError(
            f"{path} does not hold what it should", where=setting, expected=expected,
            got=_kind(text), mend=mend,
        )  # fmt: skip
    return text


def _kind(text: bytes) -> str:
    """Say what a file is instead."""
    if not text.strip():
        return "an empty file"
    if _KEY in text:
        return "a private key"
    if _CERTIFICATE in text:
        return "a certificate"
    return "something that is no PEM"


def _explained(error: ssl.SSLError, files: TlsFiles) -> HeadraceError:
    if error.reason == "KEY_VALUES_MISMATCH":
        return InvalidArgumentError(
            f"the key {files.key} is not that of the certificate {files.cert}",
            where="tls_key",
            expected="the key that the certificate was made for",
            mend="check --tls-cert and --tls-key: the server's own certificate comes first",
        )
    return InvalidArgumentError(
        f"{files.cert} with {files.key} cannot be used",
        where="tls_cert",
        expected="a certificate and its key that OpenSSL takes",
        got=error.reason or "what is no PEM",
        mend="check both with: openssl x509 -in CERT -noout -text; openssl pkey -in KEY -noout",
    )


def _no_password() -> str:
    # Asked only for an encrypted key; OpenSSL itself would ask the terminal, and wait for ever.
    raise InvalidArgumentError(
        "the key is encrypted",
        where="tls_key",
        expected="a key without a password",
        mend="openssl pkey -in KEY -out PLAIN, for headrace's user alone to read",
    )
