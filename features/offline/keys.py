"""Dense ids of entity keys, so that joins work on small integers.

The same ids meet as in `entity_key`: an integer and its decimal text are one id, a UUID is one in
whatever form it comes, parts never run together, and a null part means: no key.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.arrow import Arrow, arrow_column, typed_column
from features.sources import Entity
from features.types import DType
from headrace.errors import InvalidArgumentError


def dense_keys(
    entity: Entity, events: pa.Table, spine: pa.Table, where: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return int64 ids of the events and of the spine's rows (-1: no key), and how many ids.

    Raises InvalidArgumentError when a join key is missing or of another type than its key's.
    """
    count = events.num_rows
    ids = np.zeros(count + spine.num_rows, dtype=np.int64)
    groups = 1
    for name in entity.join_keys:
        dtype = entity.key_type(name)
        sides = [key_part(events, name, dtype, where), key_part(spine, name, dtype, "spine")]
        # An integer and its text are one id; where there are integers only, no text is needed.
        are_integers = all(pa.types.is_integer(side.type) for side in sides)
        kind = pa.int64() if are_integers else _KINDS.get(dtype, pa.large_string())
        parts = [chunk for side in sides for chunk in side.cast(kind).chunks]
        encoded: Arrow = pc.dictionary_encode(pa.chunked_array(parts, type=kind).combine_chunks())
        index = np.asarray(pc.fill_null(encoded.indices.cast(pa.int64()), -1))
        size = max(len(encoded.dictionary), 1)
        ids = np.where((ids < 0) | (index < 0), -1, ids * size + index)
        groups *= size
        if len(entity.join_keys) > 1:
            # Dense again, or a third part could overflow.
            known, ids = np.unique(ids, return_inverse=True)
            if known.size and known[0] < 0:
                ids -= 1
            groups = max(int(ids.max(initial=-1)) + 1, 1)
    return ids[:count], ids[count:], groups


_KINDS = {DType.BYTES: pa.large_binary()}


def key_part(table: pa.Table, name: str, dtype: DType, where: str) -> Arrow:
    """Return the column of a join key of a type (`Entity.key_type`); raises for another.

    Ids come as integers or text, UUIDs as text in its one form; nulls are nulls.
    """
    if dtype in {DType.UUID, DType.BYTES}:
        return typed_column(table, name, dtype, where)
    column = arrow_column(table, name, where)
    kind = column.type
    if not (
        pa.types.is_integer(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_null(kind)
    ):
        raise InvalidArgumentError(
            f"join key {name!r} has a type that is none of a key",
            where=where,
            expected="integers or text",
            got=str(kind),
        )
    # Beyond int64 only the text holds it.
    return column.cast(pa.large_string()) if pa.types.is_uint64(kind) else column
