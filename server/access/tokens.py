"""JSON Web Tokens (RFC 7519) by the keys of a JWKS file (RFC 7517), or of a secret (HS256).

The algorithm is the key's, never what a token says of itself (RFC 8725 §3.1): RSA is RS256, P-256
is ES256, Ed25519 is EdDSA, a secret is HS256. Time is told by the caller.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

from headrace.errors import InvalidArgumentError, UnauthenticatedError
from server.access.principal import ANY, Grant, Principal, Rule, Scope

TOKEN_BYTES_MAX = 8192
_SECRET_BYTES_MIN = 32  # RFC 7518 §3.2
_RSA_BITS_MIN = 2048  # RFC 7518 §3.3
_KEYS_MAX = 64
_TEXT_MAX = 256  # of a subject, a tenant or a name
_NAMES_MAX = 64
_SIGNATURE_ONLY: dict[str, Any] = {
    "verify_exp": False, "verify_nbf": False, "verify_iat": False, "require": ["exp", "sub"],
}  # fmt: skip
# (key type, curve) → algorithm
_ALGORITHMS = {
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}
_SCOPES = {str(scope): scope for scope in Scope}


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A key and the one algorithm that it is for."""

    algorithm: str
    key: Any


def read_jwks(path: Path) -> dict[str | None, VerifyingKey]:
    """Return the public keys of a JWKS file by their id. Raises InvalidArgumentError."""
    try:
        listed = json.loads(path.read_bytes())["keys"]
        if not isinstance(listed, list) or not 0 < len(listed) <= _KEYS_MAX:
            raise ValueError("no list of keys")
    except OSError as error:
        raise _bad(path, "cannot be read", str(error.strerror)) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _bad(path, "is not a JWKS", f'{{"keys": [1 to {_KEYS_MAX} keys]}}') from None
    keys: dict[str | None, VerifyingKey] = {}
    for place, entry in enumerate(listed):
        where = f"key {place}"
        if not isinstance(entry, dict):
            raise _bad(path, f"{where} is no key", "an object")
        key_id = entry.get("kid")
        if key_id in keys or not (key_id is None or isinstance(key_id, str)):
            raise _bad(path, f"{where} has a kid that is none, or that another has", "its own")
        if key_id is None and len(listed) > 1:
            raise _bad(path, f"{where} has no kid", "one for each key where there are several")
        keys[key_id] = _key(path, where, entry)
    return keys


def _key(path: Path, where: str, entry: dict[str, Any]) -> VerifyingKey:
    curve = entry.get("crv")
    algorithm = _ALGORITHMS.get((str(entry.get("kty")), None if curve is None else str(curve)))
    if algorithm is None or entry.get("alg", algorithm) != algorithm:
        expected = "RSA for RS256, EC P-256 for ES256, OKP Ed25519 for EdDSA"
        raise _bad(path, f"{where} is of a kind that is not taken", expected)
    if "d" in entry:
        raise _bad(path, f"{where} is a private key", "public keys: whoever has this one can sign")
    if entry.get("use", "sig") != "sig":
        raise _bad(path, f"{where} is not for signatures", "use sig")
    try:
        key = jwt.PyJWK(entry, algorithm).key
    except Exception:  # noqa: BLE001 - a library of its own errors, and those of what is below it
        raise _bad(path, f"{where} is malformed", f"a public key for {algorithm}") from None
    if algorithm == "RS256" and key.key_size < _RSA_BITS_MIN:
        raise _bad(path, f"{where} is too short", f"at least {_RSA_BITS_MIN} bits")
    return VerifyingKey(algorithm, key)


def read_secret(path: Path) -> VerifyingKey:
    """Return the secret of HS256 in a file. Raises InvalidArgumentError."""
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise _bad(path, "cannot be read", str(error.strerror)) from None
    if len(secret) < _SECRET_BYTES_MIN:
        raise _bad(path, "is too short a secret", f"at least {_SECRET_BYTES_MIN} bytes")
    return VerifyingKey("HS256", secret)


def _bad(path: Path, what: str, expected: str) -> InvalidArgumentError:
    return InvalidArgumentError(what, where=path.name, expected=expected)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Reads tokens of one issuer for one audience.

    `leeway_s` is by how much clocks may differ. A principal is the token's `sub` with the scopes of
    its `scope`; its tenant and the names that it may ask for are in claims of these names, without
    them the subject and every name.
    """

    keys: dict[str | None, VerifyingKey]
    issuer: str
    audience: str
    leeway_s: float = 30.0
    tenant_claim: str | None = None
    names_claim: str | None = None

    def grant(self, token: str, now_s: float) -> Grant:
        """Return what a token allows. Raises UnauthenticatedError, which never shows the token."""
        claims = self._claims(token)
        expires_s = _time(claims, "exp") + self.leeway_s
        if now_s >= expires_s:
            raise _refused("has expired")
        for name in ("nbf", "iat"):
            if name in claims and now_s < _time(claims, name) - self.leeway_s:
                raise _refused(f"is of the future ({name})")
        subject = _text(claims, "sub")
        tenant = subject if self.tenant_claim is None else _text(claims, self.tenant_claim)
        names = (ANY,) if self.names_claim is None else _texts(claims, self.names_claim)
        scopes = frozenset(_SCOPES[each] for each in _scope(claims) if each in _SCOPES)
        return Grant(Principal(subject, tenant, (Rule(scopes, names),)), expires_s)

    def _claims(self, token: str) -> dict[str, Any]:
        if len(token) > TOKEN_BYTES_MAX:
            raise _refused("is too long")
        try:
            header = jwt.get_unverified_header(token)
            key = self._key_of(header)
            return jwt.decode(
                token, key.key, algorithms=[key.algorithm], audience=self.audience,
                issuer=self.issuer, options=_SIGNATURE_ONLY,  # type: ignore[arg-type]
            )  # fmt: skip
        except jwt.InvalidAudienceError:
            raise _refused("is for another audience") from None
        except jwt.InvalidIssuerError:
            raise _refused("is of another issuer") from None
        except jwt.MissingRequiredClaimError as error:
            raise _refused(f"lacks claim '{error.claim}'") from None
        except jwt.InvalidSignatureError:
            raise _refused("is signed by another key") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise _refused("is malformed") from None

    def _key_of(self, header: dict[str, Any]) -> VerifyingKey:
        keys = self.keys
        key = keys.get(header.get("kid")) if len(keys) > 1 else next(iter(keys.values()))
        if key is None:
            raise _refused("is signed by another key")
        if header.get("alg") != key.algorithm:
            raise _refused("names another algorithm than its key's")
        return key


def _refused(why: str) -> UnauthenticatedError:
    return UnauthenticatedError(f"the token {why}")


def _time(claims: dict[str, Any], name: str) -> float:
    value = claims[name]
    # NaN compares with nothing, and json takes it.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise _refused(f"has a malformed claim '{name}'")
    return float(value)


def _text(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= _TEXT_MAX or not value.isprintable():
        raise _refused(f"lacks claim '{name}', or it is no short text")
    return value


def _texts(claims: dict[str, Any], name: str) -> tuple[str, ...]:
    values = claims.get(name)
    if not isinstance(values, list) or len(values) > _NAMES_MAX:
        raise _refused(f"lacks claim '{name}', or it is no short list")
    if not all(isinstance(value, str) and len(value) <= _TEXT_MAX for value in values):
        raise _refused(f"has a malformed claim '{name}'")
    return tuple(values)


def _scope(claims: dict[str, Any]) -> list[str]:
    scope = claims.get("scope", "")
    if isinstance(scope, str):
        return scope.split()
    if isinstance(scope, list):
        return [each for each in scope if isinstance(each, str)]
    raise _refused("has a malformed claim 'scope'")
