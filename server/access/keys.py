"""API keys: `hr_ID_SECRET`. The access file holds an id and a digest, never the key.

The secret has 256 random bits, so that a plain digest keeps it: there is nothing to guess, and no
slow hash whose work a stranger could ask for.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple

_ID_BYTES, _SECRET_BYTES = 4, 32
_KEY = re.compile(r"hr_([0-9a-f]{8})_[A-Za-z0-9_-]{43}")
_STORED = re.compile(r"([0-9a-f]{8}):([0-9a-f]{64})")
KEY_PREFIX = "hr_"


class StoredKey(NamedTuple):
    """What a server knows of a key."""

    key_id: str
    digest: str  # SHA-256 of the whole key, hexadecimal

    def __str__(self) -> str:
        return f"{self.key_id}:{self.digest}"


def new_key(random_bytes: Callable[[int], bytes]) -> tuple[str, StoredKey]:
    """Return a new key and what is to be kept of it."""
    key_id = random_bytes(_ID_BYTES).hex()
    secret = urlsafe_b64encode(random_bytes(_SECRET_BYTES)).decode().rstrip("=")
    key = f"{KEY_PREFIX}{key_id}_{secret}"
    return key, StoredKey(key_id, _digest(key))


def stored_key(text: str) -> StoredKey | None:
    """Return `ID:DIGEST` taken apart; None where it is not of that form."""
    found = _STORED.fullmatch(text)
    return None if found is None else StoredKey(found[1], found[2])


def key_id_of(key: str) -> str | None:
    """Return the id in a key; None where the text is no key."""
    found = _KEY.fullmatch(key)
    return None if found is None else found[1]


def is_key(key: str, digest: str) -> bool:
    """Return whether a key has this digest. How long that takes tells nothing of either."""
    return hmac.compare_digest(_digest(key), digest)


def _digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()
