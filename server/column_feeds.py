"""Columns of a request as the tensors of a model that has no feature service."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from features import Table
from headrace.errors import InvalidArgumentError
from server.models.loaded import ServedModel
from server.protocol.tensors import DATATYPES, Tensor

Array = npt.NDArray[Any]


def feeds_of_columns(name: str, inputs: Table, model: ServedModel, rows: list[int]) -> list[Array]:
    """Return the inputs of a model without a feature service, each from the column of its name.

    Raises InvalidArgumentError naming a column that is missing, has a null or a wrong type.
    """
    tensors = []
    for spec in model.inputs.values():
        column = inputs.get(spec.name)
        where = f"inputs of model '{name}'"
        if column is None:
            raise InvalidArgumentError(f"column '{spec.name}' is missing", where=where)
        if len(spec.shape) > 2 or (len(spec.shape) == 2 and spec.shape[1] not in {-1, 1}):
            raise InvalidArgumentError(
                f"input '{spec.name}' is no column, and the model has no feature service",
                where=where,
                mend="send tensors with ModelInfer",
            )
        values = column.values[rows]
        if not column.mask[rows].all():
            raise InvalidArgumentError(f"column '{spec.name}' has a null", where=where)
        tensors.append(_tensor(spec.name, spec.datatype, values, len(spec.shape), where))
    feeds, _ = model.check(tensors, ())
    return feeds


def _tensor(name: str, datatype: str, values: Array, rank: int, where: str) -> Tensor:
    wanted = DATATYPES[datatype].dtype
    fits = {"O": "O", "b": "b", "f": "fi", "i": "i", "u": "i"}[wanted.kind]
    if values.dtype.kind not in fits:
        raise InvalidArgumentError(
            f"column '{name}' has a wrong type", where=where, expected=datatype, got=values.dtype
        )
    if datatype == "BYTES":
        values = np.array([value.encode() for value in values.tolist()], object)
    else:
        values = values.astype(wanted)
    return Tensor(name, datatype, values.reshape((-1, 1)[: max(rank, 1)]))
