"""Columns behind a row's own, that tables give for its categories, as a graph has them.

`server.backends.forests.categories` writes such graphs: trees compare numbers, and a split that
asks for one of a set of categories compares what a table of the feature says of it. Only exactly
that is known here. What such a column adds is its feature's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_FLOAT, _INT64 = 1, 7  # ONNX's numbers of data types
_DTYPES: dict[int, np.dtype[Any]] = {_FLOAT: np.dtype("<f4"), _INT64: np.dtype("<i8")}


@dataclass(frozen=True)
class Lookups:
    """Of a row of `width` features, those of `features` int64 [K] are categories: from `least` on,
    and below how many its table knows. `tables`: for each float32 [categories + 2, columns], the
    last rows for what is no such category, and for NaN. `owner` int32: the feature of each column.
    """

    width: int
    features: npt.NDArray[np.int64]
    least: float
    tables: Sequence[npt.NDArray[np.float32]]
    owner: npt.NDArray[np.int32]

    def extended(self, rows: Array) -> Array:
        """Return rows [N, width] with the columns behind."""
        chosen = rows[:, self.features]
        counts = np.array([len(table) - 2 for table in self.tables])
        known = (chosen >= self.least) & (chosen < counts)
        place = np.where(known, chosen, counts).astype(np.int64) + np.isnan(chosen)
        columns = [table[place[:, at]] for at, table in enumerate(self.tables)]
        return np.concatenate([rows[:, : self.width], *columns], axis=1)


class _OtherError(Exception):
    """The graph is another one."""


def read_lookups(graph: Any, output: str) -> Lookups | None:
    """Return what makes `output` of the one input of `graph`; None where that is anything else."""
    made = {node.output[0]: node for node in graph.node if len(node.output) == 1}
    try:
        return _read(graph, made, output)
    except _OtherError:
        return None


def _read(graph: Any, made: dict[str, Any], output: str) -> Lookups:
    rows = graph.input[0].name
    dims = graph.input[0].type.tensor_type.shape.dim
    width = int(dims[1].dim_value) if len(dims) == 2 else 0
    constants = {each.name: each for each in graph.initializer}
    first, *columns = _inputs(made, output, "Concat", axis=1)
    _same(first, rows)
    tables = []
    place = ""
    for number, column in enumerate(columns):
        table, mine = _inputs(made, column, "Gather", axis=0)
        place, at = _inputs(made, mine, "Gather", axis=1)
        _same(int(_constant(constants, at, ())), number)
        tables.append(_constant(constants, table, (-1, -1)).astype(np.float32))
    whole, missing = _inputs(made, place, "Add")
    (number_of,) = _inputs(made, whole, "Cast", to=_INT64)
    (is_nan,) = _inputs(made, missing, "Cast", to=_INT64)
    known, chosen, counts_of = _inputs(made, number_of, "Where")
    for found, inputs in (
        (_inputs(made, is_nan, "IsNaN"), [chosen]),
        (_inputs(made, _inputs(made, known, "And")[1], "Less"), [chosen, counts_of]),
    ):
        _same(found, inputs)
    again, least_of = _inputs(made, _inputs(made, known, "And")[0], "GreaterOrEqual")
    _same(again, chosen)
    source, features_of = _inputs(made, chosen, "Gather", axis=1)
    _same(source, rows)
    features = _constant(constants, features_of, (-1,)).astype(np.int64)
    counts = _constant(constants, counts_of, (len(features),))
    least = float(_constant(constants, least_of, ()))
    _same([len(table) for table in tables], (counts + 2).tolist())
    # So no place leads out of a table.
    if not (-1 < least <= 0 and (features >= 0).all() and (features < width).all()):
        raise _OtherError
    users = [name for node in graph.node if rows in node.input for name in node.output]
    _same(sorted(users), sorted([output, chosen]))
    owner = np.repeat(features, [table.shape[1] for table in tables]).astype(np.int32)
    return Lookups(width, features, least, tables, owner)


def _inputs(made: dict[str, Any], name: str, operator: str, **attributes: int) -> list[str]:
    """Return the inputs of the node that makes `name`, which is to be this one."""
    node = made.get(name)
    if node is None or node.op_type != operator or node.domain:
        raise _OtherError
    _same({each.name: each.i for each in node.attribute}, attributes)
    return list(node.input)


def _constant(constants: dict[str, Any], name: str, shape: tuple[int, ...]) -> Array:
    """Return a constant of this shape, −1: any size."""
    tensor = constants.get(name)
    dtype = None if tensor is None else _DTYPES.get(tensor.data_type)
    if tensor is None or dtype is None or len(tensor.dims) != len(shape):
        raise _OtherError
    sizes = [int(size) for size in tensor.dims]
    if any(want not in {-1, size} for want, size in zip(shape, sizes, strict=True)):
        raise _OtherError
    if len(tensor.raw_data) != int(np.prod(sizes, dtype=object)) * dtype.itemsize:
        raise _OtherError
    return np.frombuffer(tensor.raw_data, dtype).reshape(sizes)


def _same(found: object, expected: object) -> None:
    if found != expected:
        raise _OtherError
