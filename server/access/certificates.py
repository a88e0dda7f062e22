"""The names of a client's certificate (RFC 5280): what the access file knows its owner by.

A name is `KIND:VALUE`. Of the subject alternative name these are URIs (a SPIFFE id is one), DNS
names and e-mail addresses; of the subject it is the common name. Whether the certificate is worth
anything the TLS layer has found out.
"""

from __future__ import annotations

from typing import NamedTuple

from cryptography import x509
from cryptography.x509.oid import NameOID

URI, DNS, EMAIL, COMMON_NAME = "uri", "dns", "email", "cn"
KINDS = (URI, DNS, EMAIL, COMMON_NAME)  # the first that somebody has decides


class Certificate(NamedTuple):
    """`names` in the order in which they decide; `ends_s` is in seconds since 1970."""

    names: tuple[str, ...]
    ends_s: float


def read_certificate(der: bytes) -> Certificate | None:
    """Return what a certificate in DER says; None for one that cannot be read."""
    try:
        read = x509.load_der_x509_certificate(der)
        names = [*_alternative_names(read), *_common_names(read)]
        return Certificate(tuple(names), read.not_valid_after_utc.timestamp())
    except Exception:  # noqa: BLE001 - a library of its own errors, and those of what is below it
        return None


def normal_name(text: str) -> str | None:
    """Return a name of the access file as certificates' names are compared; None where it is none.

    DNS names have no case.
    """
    kind, _, value = text.partition(":")
    if kind not in KINDS or not value or not value.isprintable():
        return None
    return text.lower() if kind == DNS else text


def _alternative_names(read: x509.Certificate) -> list[str]:
    try:
        names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [
        *(f"{URI}:{name}" for name in names.get_values_for_type(x509.UniformResourceIdentifier)),
        *(f"{DNS}:{name.lower()}" for name in names.get_values_for_type(x509.DNSName)),
        *(f"{EMAIL}:{name}" for name in names.get_values_for_type(x509.RFC822Name)),
    ]


def _common_names(read: x509.Certificate) -> list[str]:
    found = read.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return [f"{COMMON_NAME}:{each.value}" for each in found if isinstance(each.value, str)]
