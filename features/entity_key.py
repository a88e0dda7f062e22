"""Canonical bytes of an entity's join keys: one id, however it was typed, is one key.

A part is a tag, its length as u32 little-endian and its bytes. Tag 1 is an id: UTF-8 text, an
integer's being its decimal form, so that int32 12, int64 12 and "12" meet. Tag 2 is bytes as they
are, tag 3 the 16 bytes of a UUID, in whatever form it came. The parts stand in the order of
`Entity.join_keys`; the lengths keep (1, 23) and (12, 3) apart. A null part means: no key.
"""

from __future__ import annotations

import contextlib
import struct
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from features.sources import Entity
from features.types import Column, DType
from features.variable import canonical
from headrace.errors import InvalidArgumentError

_HEADER = struct.Struct("<BI")
PART_HEADER_BYTES = _HEADER.size
TAG_ID, TAG_BYTES, TAG_UUID = 1, 2, 3
# Bounds what a hostile caller can make of a key of the store.
PART_BYTES_MAX = 4096
_INTEGER_HEADERS = [_HEADER.pack(TAG_ID, length) for length in range(21)]


def entity_key(parts: Sequence[object]) -> bytes | None:
    """Return the key of one entity; None when a part is null.

    Raises InvalidArgumentError for a part that is neither an integer, text, bytes nor a UUID, for
    one that is longer than 4096 bytes, and for text that is not valid Unicode.
    """
    out = []
    for part in parts:
        if part is None:
            return None
        out.append(key_part(part))
    return b"".join(out)


def key_part(part: object) -> bytes:
    """Return the bytes of one part that is not null. Raises as `entity_key`."""
    tag = TAG_ID
    if isinstance(part, str):
        try:
            content = part.encode()
        except UnicodeEncodeError as error:
            raise _unusable("text that is not valid Unicode") from error
    elif isinstance(part, int | np.integer) and not isinstance(part, bool):
        content = b"%d" % part
    elif isinstance(part, bytes):
        tag, content = TAG_BYTES, part
    elif isinstance(part, uuid.UUID):
        tag, content = TAG_UUID, part.bytes
    else:
        raise _unusable(type(part).__name__)
    if len(content) > PART_BYTES_MAX:
        raise _unusable(f"{len(content)} bytes")
    return _HEADER.pack(tag, len(content)) + content


def entity_keys(entity: Entity, inputs: Mapping[str, Column]) -> list[bytes | None]:
    """Return the key of every row, from the columns named by the entity's join keys.

    Raises InvalidArgumentError when a join key's column is missing or has no key's type, and for
    what `entity_key` refuses.
    """
    columns = [values_of(column) for column in key_columns(entity, inputs)]
    if (
        len(columns) == 1
        and not entity.key_types
        and inputs[entity.join_keys[0]].values.dtype.kind in "iu"
    ):
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
            expected="integers, text or bytes",
            got=str(column.values.dtype),
        )
    is_plain = entity.key_type(name) is DType.INT64
    return column if is_plain else _typed(entity, name, column)


def values_of(column: Column) -> list[object]:
    """Return the values, None where there is none."""
    values: list[object] = column.values.tolist()
    if column.valid is None:
        return values
    return [v if ok else None for v, ok in zip(values, column.valid.tolist(), strict=True)]


def _typed(entity: Entity, name: str, column: Column) -> Column:
    """Return a column's values as its key's declared type has them."""
    dtype = entity.key_types[name]
    typed = np.empty(len(column), np.object_)
    for row, value in enumerate(values_of(column)):
        try:
            if value is not None:
                held = canonical(value, dtype)
                typed[row] = uuid.UUID(held) if dtype is DType.UUID else held
        except (ValueError, TypeError):
            raise InvalidArgumentError(
                f"join key {name!r} does not hold {dtype.value}",
                where=f"entity {entity.name!r}",
                expected="UUIDs: text or 16 bytes" if dtype is DType.UUID else dtype.value,
                got=f"{value!r:.60}",
            ) from None
    return Column(typed, column.valid)


def _unusable(got: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "a part of an entity's key is not usable",
        expected=f"an integer, or text or bytes of at most {PART_BYTES_MAX} bytes",
        got=got,
    )
