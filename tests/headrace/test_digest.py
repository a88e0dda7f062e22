"""Digests: equal values, equal identity."""

from __future__ import annotations

import hashlib
from pathlib import Path

from headrace.digest import canonical_json, digest_bytes, digest_file, digest_json


def test_key_order_does_not_matter() -> None:
    assert canonical_json({"b": 1, "a": {"d": 2, "c": 3}}) == b'{"a":{"c":3,"d":2},"b":1}'
    assert digest_json({"b": 1, "a": 2}) == digest_json({"a": 2, "b": 1})


def test_digests_are_sha256(tmp_path: Path) -> None:
    expected = "sha256:" + hashlib.sha256(b"water").hexdigest()
    (tmp_path / "file").write_bytes(b"water")
    assert digest_bytes(b"water") == digest_file(tmp_path / "file") == expected
