"""Keys, tokens and access files for tests. Tokens are made by hand: a library refuses bad ones."""

from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

ISSUER, AUDIENCE = "https://issuer.example", "headrace"
NOW_S = 1_800_000_000.0


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def number(value: int, size: int | None = None) -> str:
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


Signer = Callable[[bytes], bytes]


class Issuer:
    """Has a key of each kind; `jwk` and `sign` by algorithm."""

    def __init__(self) -> None:
        self.rsa = rsa.generate_private_key(65537, 2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.ed = ed25519.Ed25519PrivateKey.generate()
        public, point = self.rsa.public_key().public_numbers(), self.ec.public_key()
        at = point.public_numbers()
        self.jwk: dict[str, dict[str, Any]] = {
            "RS256": {"kty": "RSA", "n": number(public.n), "e": number(public.e)},
            "ES256": {"kty": "EC", "crv": "P-256", "x": number(at.x, 32), "y": number(at.y, 32)},
            "EdDSA": {
                "kty": "OKP", "crv": "Ed25519", "x": b64(self.ed.public_key().public_bytes_raw()),
            },
        }  # fmt: skip
        self.sign: dict[str, Signer] = {
            "RS256": lambda data: self.rsa.sign(data, padding.PKCS1v15(), hashes.SHA256()),
            "ES256": self._sign_ec,
            "EdDSA": self.ed.sign,
        }

    def _sign_ec(self, data: bytes) -> bytes:
        r, s = decode_dss_signature(self.ec.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def jwks(self, path: Path, *algorithms: str) -> Path:
        keys = [self.jwk[each] | {"kid": each} for each in algorithms or self.jwk]
        path.write_text(json.dumps({"keys": keys}))
        return path


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims, but for `changes`; None leaves one out."""
    good = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "robot", "exp": NOW_S + 600, "iat": NOW_S,
        "scope": "infer metadata",
    }  # fmt: skip
    return {name: value for name, value in (good | changes).items() if value is not None}


def token(payload: Any, sign: Signer, **header: Any) -> str:
    """A token of any header and payload."""
    signed = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(payload).encode())}"
    return f"{signed}.{b64(sign(signed.encode()))}"


def hs256(secret: bytes) -> Signer:
    return lambda data: hmac.digest(secret, data, sha256)
