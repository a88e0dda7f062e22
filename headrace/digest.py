"""Content digests: the identity of everything that is versioned."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

_CANONICAL = msgspec.json.Encoder(order="sorted")


def canonical_json(value: object) -> bytes:
    """Return `value` as JSON with sorted keys and no spaces: equal values give equal bytes."""
    return _CANONICAL.encode(value)


def digest_bytes(data: bytes) -> str:
    """Return `sha256:<hex>` of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_json(value: object) -> str:
    """Return `sha256:<hex>` of the canonical JSON of `value`."""
    return digest_bytes(canonical_json(value))


def digest_file(path: Path) -> str:
    """Return `sha256:<hex>` of a file's content."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
