"""Canonical bytes of an entity's join keys: one id, however it was typed, is one key.

A part is a tag, its length as u32 little-endian and its bytes. Tag 1 is an id: UTF-8 text, an
integer's being its decimal form, so that int32 12, int64 12 and "12" meet. Tag 2 is bytes as they
are, tag 3 the 16 bytes of a UUID, in whatever form it came. The parts stand in the order of
`Entity.join_keys`; the lengths keep (1, 23) and (12, 3) apart. A null part means: no key.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from features.sources import Entity
from features.types import Column, DType
from features.variable import canonical
from headrace.errors import InvalidArgumentError

_HEADER = struct.Struct("<BI")
_TAG_ID, _TAG_BYTES, _TAG_UUID = 1, 2, 3
# Bounds what a hostile caller can make of a key of the store.
PART_BYTES_MAX = 4096
_INTEGER_HEADERS = [_HEADER.pack(_TAG_ID, length) for length in range(21)]


def entity_key(parts: Sequence[object]) -> bytes | None:
    """Return the key of one entity; None when a part is null.

    Raises InvalidArgumentError for a part that is neither an integer, text, bytes nor a UUID, for
    one that is longer than 4096 bytes, and for text that is not valid Unicode.
    """
    out = []
    for part in parts:
        if part is None:
            return None
        tag = _TAG_ID
        if isinstance(part, str):
            try:
                content = part.encode()
            except UnicodeEncodeError as error:
                raise _unusable("text that is not valid Unicode") from error
        elif isinstance(part, int | np.integer) and not isinstance(part, bool):
            content = b"%d" % part
        elif isinstance(part, bytes):
            tag, content = _TAG_BYTES, part
        elif isinstance(part, uuid.UUID):
            tag, content = _TAG_UUID, part.bytes
        else:
            raise _unusable(type(part).__name__)
        if len(content) > PART_BYTES_MAX:
            raise _unusable(f"{len(content)} bytes")
        out.append(_HEADER.pack(tag, len(content)) + content)
    return b"".join(out)


def entity_keys(entity: Entity, inputs: Mapping[str, Column]) -> list[bytes | None]:
    """Return the key of every row, from the columns named by the entity's join keys.

    Raises InvalidArgumentError when a join key's column is missing or has no key's type, and for
    what `entity_key` refuses.
    """
    columns = [_part_column(entity, name, inputs) for name in entity.join_keys]
    if (
        len(columns) == 1
        and not entity.key_types
        and inputs[entity.join_keys[0]].values.dtype.kind in "iu"
    ):
        return _keys_of_integers(columns[0])
    try:
        return [entity_key(parts) for parts in zip(*columns, strict=True)]
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


def _part_column(entity: Entity, name: str, inputs: Mapping[str, Column]) -> list[object]:
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
    values: list[object] = column.values.tolist()
    if column.valid is not None:
        valid = column.valid.tolist()
        values = [v if ok else None for v, ok in zip(values, valid, strict=True)]
    if name in entity.key_types:
        return [None if v is None else _typed_part(entity, name, v) for v in values]
    return values


def _typed_part(entity: Entity, name: str, value: object) -> object:
    """Return a value as its key's declared type has it."""
    dtype = entity.key_types[name]
    try:
        if dtype is DType.UUID:
            return uuid.UUID(canonical(value, dtype))
        return canonical(value, dtype) if dtype is DType.BYTES else value
    except (ValueError, TypeError):
        raise InvalidArgumentError(
            f"join key {name!r} does not hold {dtype.value}",
            where=f"entity {entity.name!r}",
            expected="UUIDs: text or 16 bytes" if dtype is DType.UUID else "bytes",
            got=f"{value!r:.60}",
        ) from None


def _unusable(got: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "a part of an entity's key is not usable",
        expected=f"an integer, or text or bytes of at most {PART_BYTES_MAX} bytes",
        got=got,
    )
