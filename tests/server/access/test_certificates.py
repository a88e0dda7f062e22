"""Certificates of clients: whose they are, by their names, and until when."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import UnauthenticatedError
from server.access.certificates import Certificate, normal_name, read_certificate
from server.access.file import AccessFile
from server.access.gate import Gate
from server.access.principal import Principal
from tests.server.access.test_gate import KEY, SHOP, STORED, Time

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
END = BEGIN + timedelta(days=30)
BATCH, TEAM = Principal("batch", "batch", ()), Principal("team", "team", ())


@cache
def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def certificate(alternatives: Sequence[x509.GeneralName] = (), *common_names: str) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each) for each in common_names])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(_key().public_key())
        .serial_number(1)
        .not_valid_before(BEGIN)
        .not_valid_after(END)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(_key(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


FULL = certificate(
    [
        x509.RFC822Name("ops@shop.example"),
        x509.DNSName("Batch.Shop.Example"),
        x509.UniformResourceIdentifier("spiffe://shop/batch"),
    ],
    "batch",
)


def test_names_stand_in_the_order_in_which_they_decide() -> None:
    names = ("uri:spiffe://shop/batch", "dns:batch.shop.example", "email:ops@shop.example")
    assert read_certificate(FULL) == Certificate((*names, "cn:batch"), END.timestamp())
    assert read_certificate(certificate((), "a", "b")) == Certificate(
        ("cn:a", "cn:b"), END.timestamp()
    )
    assert read_certificate(certificate()) == Certificate((), END.timestamp())


@given(st.binary(max_size=300) | st.integers(0, len(FULL) - 1).map(lambda at: FULL[:at]))
def test_bytes_that_are_no_certificate_are_nobodys(data: bytes) -> None:
    assert read_certificate(data) is None


@given(st.integers(0, len(FULL) - 1), st.integers(1, 255))
def test_a_changed_certificate_is_read_or_is_none(at: int, change: int) -> None:
    changed = bytearray(FULL)
    changed[at] ^= change
    found = read_certificate(bytes(changed))
    assert found is None or all(normal_name(name) or not name.isprintable() or name.endswith(":")
                                for name in found.names)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("uri:spiffe://a/B", "uri:spiffe://a/B"),
        ("dns:A.Example", "dns:a.example"),
        ("cn:A b", "cn:A b"),
        ("email:a@b", "email:a@b"),
        ("batch", None),
        ("cn:", None),
        ("CN:a", None),
        ("ip:1.2.3.4", None),
        ("cn:a\0b", None),
    ],
)
def test_a_name_of_the_access_file(text: str, name: str | None) -> None:
    assert normal_name(text) == name


def gate(**certificates: Principal) -> tuple[Gate, Time]:
    time = Time()
    time.s = BEGIN.timestamp() + 1
    names = {name.replace("_", ":", 1): principal for name, principal in certificates.items()}
    access = AccessFile({STORED.key_id: (STORED, SHOP)}, None, [], names)
    return Gate(access, now_s=time.wall_s, now_ns=time.monotonic_ns), time


def test_the_first_name_that_somebody_has_decides() -> None:
    found, _ = gate(cn_batch=TEAM)
    grant = found.grant_of_certificate(FULL)
    assert grant is not None
    assert (grant.principal, grant.expires_s) == (TEAM, END.timestamp())
    assert found.grant_of_certificate(FULL) is grant, "calls of one certificate go on together"
    found, _ = gate(cn_batch=TEAM, **{"email_ops@shop.example": BATCH})
    grant = found.grant_of_certificate(FULL)
    assert grant is not None
    assert grant.principal is BATCH


def test_a_certificate_of_no_name_that_is_known_is_nobodys() -> None:
    for certificates in ({"cn_Batch": BATCH}, {"cn_batch.shop.example": BATCH}, {}):
        found, _ = gate(**certificates)
        assert found.grant_of_certificate(FULL) is None
        with pytest.raises(UnauthenticatedError, match="no credential"):
            found.grant_of_fields([], found.grant_of_certificate(FULL))


def test_a_credential_of_the_call_goes_before_the_certificate() -> None:
    found, _ = gate(cn_batch=BATCH)
    identity = found.grant_of_certificate(FULL)
    assert found.grant_of_fields([], identity).principal is BATCH
    assert found.grant_of_fields([("x-api-key", KEY)], identity).principal is SHOP
    assert found.grant_of_headers({"x-api-key": KEY}, identity).principal is SHOP
    with pytest.raises(UnauthenticatedError, match="key is not known"):
        found.grant_of_fields([("x-api-key", KEY[:-1] + "?")], identity)
    with pytest.raises(UnauthenticatedError, match="several credentials"):
        found.grant_of_fields([("x-api-key", KEY), ("authorization", "Bearer x")], identity)


def test_a_connection_that_outlives_its_certificate_is_refused() -> None:
    found, time = gate(cn_batch=BATCH)
    identity = found.grant_of_certificate(FULL)
    time.s = END.timestamp() - 1
    assert found.grant_of_fields([], identity) is identity
    time.s = END.timestamp()
    with pytest.raises(UnauthenticatedError, match="expired"):
        found.grant_of_fields([], identity)


def test_certificates_do_not_pile_up() -> None:
    found, _ = gate(cn_batch=BATCH)
    for _ in range(3):
        assert found.grant_of_certificate(FULL) is found.grant_of_certificate(FULL)
    assert len(found._by_certificate) == 1
