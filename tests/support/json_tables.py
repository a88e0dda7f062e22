"""Tables as clients send them in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from features import Column


def json_of_table(table: Mapping[str, Column]) -> dict[str, list[Any]]:
    """Return JSON columns; null where a row has no value."""
    result = {}
    for name, column in table.items():
        values = column.values.tolist()
        if column.valid is not None:
            values = [
                v if ok else None for v, ok in zip(values, column.valid.tolist(), strict=True)
            ]
        result[name] = values
    return result
