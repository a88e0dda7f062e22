"""Entity keys: the store finds nothing again when these bytes change."""

from __future__ import annotations

import pytest

from features.entity_key import entity_key
from tests.contracts.golden import CHANGED, read_json


@pytest.mark.parametrize("case", read_json("entity_keys.json"), ids=lambda case: str(case["parts"]))
def test_the_bytes_of_a_key(case: dict[str, list[object] | str | None]) -> None:
    parts, key = case["parts"], case["key"]
    assert isinstance(parts, list)
    expected = bytes.fromhex(key) if isinstance(key, str) else None
    assert entity_key(parts) == expected, CHANGED
