"""What is wrong with TLS files is said before anything listens, by the setting's name."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

import pytest

from headrace.errors import (
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from server.wire.tls import H2, HTTP1, TlsFiles, tls_files
from tests.support.tls import Certificates, openssl


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def write(folder: Path, name: str, text: bytes) -> Path:
    path = folder / name
    path.write_bytes(text)
    return path


def test_good_files_make_a_context(certificates: Certificates, tmp_path: Path) -> None:
    context = certificates.files(mutual=True).context(HTTP1)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert certificates.files().context(H2).verify_mode is ssl.CERT_NONE
    cert, key = certificates.cert("server"), certificates.key("server")
    both = write(tmp_path, "both.pem", cert.read_bytes() + key.read_bytes())
    TlsFiles(both, both).context(H2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("c", None, None), "tls_cert is set and tls_key is not"),
        ((None, "k", None), "tls_key is set and tls_cert is not"),
        ((None, None, "a"), "tls_client_ca is set and TLS is off"),
    ],
)
def test_half_of_a_pair_is_an_error(settings: tuple[str | None, ...], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        tls_files(*settings)
    assert tls_files(None, None, None) is None


def broken(certificates: Certificates, folder: Path) -> dict[str, tuple[TlsFiles, type, str]]:
    """Files of no use, and what is said of them."""
    cert, key = certificates.cert("server"), certificates.key("server")
    locked = folder / "locked.key"
    openssl("pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked)
    small = folder / "small.pem"
    openssl(
        "req", "-x509", "-newkey", "rsa:1024", "-nodes", "-subj", "/CN=small",
        "-config", certificates.folder / "openssl.cnf", "-keyout", folder / "small.key",
        "-out", small,
    )  # fmt: skip
    empty = write(folder, "empty.pem", b"")
    text = write(folder, "text.pem", b"no certificate at all")
    mark = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    junk = write(folder, "junk.pem", mark)
    return {
        "no_cert": (TlsFiles(folder / "none", key), NotFoundError, "tls_cert: no file .*none"),
        "no_key": (TlsFiles(cert, folder / "none"), NotFoundError, "tls_key: no file .*none"),
        "no_ca": (TlsFiles(cert, key, folder / "none"), NotFoundError, "tls_client_ca: no file"),
        "folder": (TlsFiles(folder, key), InvalidArgumentError, "tls_cert: .*Is a directory"),
        "swapped": (TlsFiles(key, cert), InvalidArgumentError, "tls_cert: .*got a private key"),
        "cert_for_key": (TlsFiles(cert, cert), InvalidArgumentError, "tls_key: .*a certificate"),
        "empty": (TlsFiles(cert, empty), InvalidArgumentError, "tls_key: .*an empty file"),
        "text": (TlsFiles(text, key), InvalidArgumentError, "tls_cert: .*something that is no PEM"),
        "junk": (TlsFiles(junk, key), InvalidArgumentError, "tls_cert: .*OpenSSL takes"),
        "junk_ca": (TlsFiles(cert, key, junk), InvalidArgumentError, "tls_client_ca: .*a CA"),
        "small": (TlsFiles(small, folder / "small.key"), InvalidArgumentError, "KEY_TOO_SMALL"),
        "locked": (TlsFiles(cert, locked), InvalidArgumentError, "tls_key: the key is encrypted"),
        "mismatch": (
            TlsFiles(cert, certificates.key("client")),
            InvalidArgumentError,
            "tls_key: the key .*client.key is not that of the certificate .*server.pem",
        ),
    }


@pytest.mark.parametrize(
    "case",
    [
        "no_cert", "no_key", "no_ca", "folder", "swapped", "cert_for_key", "empty", "text", "junk",
        "junk_ca", "small", "locked", "mismatch",
    ],
)  # fmt: skip
def test_files_of_no_use_are_named(certificates: Certificates, tmp_path: Path, case: str) -> None:
    files, kind, message = broken(certificates, tmp_path)[case]
    with pytest.raises(HeadraceError, match=message) as caught:
        files.check()
    assert type(caught.value) is kind
    assert caught.value.mend


def test_a_file_that_may_not_be_read_is_named(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = write(tmp_path, "secret.key", certificates.key("server").read_bytes())
    key.chmod(0)
    try:
        key.read_bytes()
    except PermissionError:
        pass
    else:
        pytest.skip("this user may read everything")
    with pytest.raises(PermissionDeniedError, match=r"tls_key: .*secret\.key cannot be read"):
        TlsFiles(certificates.cert("server"), key).check()


def test_a_key_for_everybody_is_warned_of(
    certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificates.files().check()
    assert not caplog.records
    key = write(tmp_path, "open.key", certificates.key("server").read_bytes())
    key.chmod(0o644)
    TlsFiles(certificates.cert("server"), key).check()
    assert re.search(r"every user .* may read .*open\.key", caplog.text)
