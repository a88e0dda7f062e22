"""API keys: made once, kept as a digest, found by their id."""

from __future__ import annotations

import secrets

from hypothesis import given
from hypothesis import strategies as st

from server.access.keys import is_key, key_id_of, new_key, stored_key


def test_a_key_is_recognised_by_what_is_kept_of_it() -> None:
    key, stored = new_key(secrets.token_bytes)
    kept = stored_key(str(stored))
    assert kept == stored
    assert key_id_of(key) == stored.key_id
    assert is_key(key, stored.digest)
    assert key not in str(stored)
    assert key.split("_", 2)[2] not in str(stored)
    other, _ = new_key(secrets.token_bytes)
    assert not is_key(other, stored.digest)


@given(st.integers(0, 55), st.characters(codec="utf-8"))
def test_a_key_with_another_letter_is_another_key(place: int, letter: str) -> None:
    key, stored = new_key(lambda count: bytes(range(count)))
    changed = key[:place] + letter + key[place + 1 :]
    assert is_key(changed, stored.digest) == (changed == key)


@given(st.text(max_size=80))
def test_any_text_is_a_key_or_none(text: str) -> None:
    assert key_id_of(text) is None or text.startswith("hr_")
    assert stored_key(text) is None or ":" in text
