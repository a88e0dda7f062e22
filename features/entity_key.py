"""Canonical bytes of an entity's join keys: one id, however it was typed, is one key.

A part is a tag (1: an id), its length as u32 little-endian and its UTF-8 text; an integer's text is
its decimal form, so int32 12, int64 12 and "12" meet. The parts stand in the order of
`Entity.join_keys`; the lengths keep (1, 23) and (12, 3) apart. A null part means: no key.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from features.sources import Entity
from features.types import Column
from headrace.errors import InvalidArgumentError

_HEADER = struct.Struct("<BI")
PART_HEADER_BYTES = _HEADER.size
TAG_ID = 1
# Bounds what a hostile caller can make of a key of the store.
PART_BYTES_MAX = 4096
_INTEGER_HEADERS = [_HEADER.pack(TAG_ID, length) for length in range(21)]


def entity_key(parts: Sequence[object]) -> bytes | None:
    """Return the key of one entity; None when a part is null.

    Raises InvalidArgumentError for a part that is neither an integer nor text, and for text that is
    longer than 4096 bytes or not valid Unicode.
    """
    out = []
    for part in parts:
        if part is None:
            return None
        out.append(key_part(part))
    return b"".join(out)


def key_part(part: object) -> bytes:
    """Return the bytes of one part that is not null. Raises as `entity_key`."""
    if isinstance(part, str):
        try:
            text = part.encode()
        except UnicodeEncodeError as error:
            raise _unusable("text that is not valid Unicode") from error
    elif isinstance(part, int | np.integer) and not isinstance(part, bool):
        text = b"%d" % part
    else:
        raise _unusable(type(part).__name__)
    if len(text) > PART_BYTES_MAX:
        raise _unusable(f"{len(text)} bytes")
    return _HEADER.pack(TAG_ID, len(text)) + text


def entity_keys(entity: Entity, inputs: Mapping[str, Column]) -> list[bytes | None]:
    """Return the key of every row, from the columns named by the entity's join keys.

    Raises InvalidArgumentError when a join key's column is missing or has no key's type, and for
    what `entity_key` refuses.
    """
    columns = [values_of(column) for column in key_columns(entity, inputs)]
    if len(columns) == 1 and inputs[entity.join_keys[0]].values.dtype.kind in "iu":
        return _keys_of_integers(columns[0])
    with naming(entity):
        return [entity_key(parts) for parts in zip(*columns, strict=True)]


@contextlib.contextmanager
def naming(entity: Entity) -> Iterator[None]:
    """Let what is raised within say of which entity the key is."""
    try:
        yield
    except InvalidArgumentError as error:
        where = f"entity {entity.name!r}"
        raise InvalidArgumentError(
            error.what, where=where, expected=error.expected, got=error.got
        ) from None


def _keys_of_integers(values: list[Any]) -> list[bytes | None]:
    """Return what `entity_key` does for one part that is an integer: the usual case, quicker."""
    headers = _INTEGER_HEADERS
    texts = [None if value is None else b"%d" % value for value in values]
    return [None if text is None else headers[len(text)] + text for text in texts]


def key_columns(entity: Entity, inputs: Mapping[str, Column]) -> list[Column]:
    """Return the columns of an entity's join keys.

    Raises InvalidArgumentError when one is missing or has a type that is none of a key.
    """
    return [_key_column(entity, name, inputs) for name in entity.join_keys]


def _key_column(entity: Entity, name: str, inputs: Mapping[str, Column]) -> Column:
    column = inputs.get(name)
    if column is None:
        raise InvalidArgumentError(
            f"join key {name!r} is missing",
            where=f"entity {entity.name!r}",
            got=f"columns {', '.join(sorted(inputs))}" if inputs else "no columns",
        )
    if column.values.dtype.kind not in "iuO":
        raise InvalidArgumentError(
            f"join key {name!r} has a type that is none of a key",
            where=f"entity {entity.name!r}",
            expected="integers or text",
            got=str(column.values.dtype),
        )
    return column


def values_of(column: Column) -> list[object]:
    """Return the values, None where there is none."""
    values: list[object] = column.values.tolist()
    if column.valid is None:
        return values
    return [v if ok else None for v, ok in zip(values, column.valid.tolist(), strict=True)]


def _unusable(got: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "a part of an entity's key is not usable",
        expected=f"an integer, or text of at most {PART_BYTES_MAX} bytes",
        got=got,
    )
