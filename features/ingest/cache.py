"""Rows that the ingester wrote or read lately, so that it need not ask the store for them again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

# What a cached row costs beside its value: its key and the links between them.
ENTRY_BYTES = 256


class RowCache:
    """Row key → value, bounded in bytes; the least recently used go first.

    True to the store as long as nobody else writes: the script that writes makes sure of it.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._rows: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def size_bytes(self) -> int:
        """What is held, with an estimate of what holding it costs."""
        return self._bytes

    def get(self, key: bytes) -> bytes | None:
        """Return the row and mark it as used, or None."""
        value = self._rows.get(key)
        if value is not None:
            self._rows.move_to_end(key)
        return value

    def put_all(self, keys: Iterable[bytes], values: Iterable[bytes]) -> None:
        """Keep rows, for as long as there is room."""
        for key, value in zip(keys, values, strict=True):
            self.put(key, value)

    def put(self, key: bytes, value: bytes) -> None:
        """Keep a row, for as long as there is room."""
        before = self._rows.pop(key, None)
        if before is not None:
            self._bytes -= len(before) + ENTRY_BYTES
        self._rows[key] = value
        self._bytes += len(value) + ENTRY_BYTES
        while self._bytes > self._bytes_max:
            _, dropped = self._rows.popitem(last=False)
            self._bytes -= len(dropped) + ENTRY_BYTES

    def clear(self) -> None:
        """Forget everything: somebody else may have written."""
        self._rows.clear()
        self._bytes = 0
