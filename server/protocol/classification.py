"""The classification extension: the k largest values of an output as text, with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import InvalidArgumentError

Array = npt.NDArray[Any]
_KINDS = frozenset("iuf")
_ELEMENTS_MAX = 1_000_000  # of one row, as Triton's


def top_classes(
    array: Array, datatype: str, count: int, labels: Sequence[str], *, has_batch: bool
) -> Array:
    """Return `value:index` or `value:index:label` of the `count` largest elements, largest first.

    Of a batch, [rows, count] with the largest of each row; else [count], of all elements. Where
    there are fewer elements they are all there. Equal values keep their order, NaN is the smallest.
    Raises InvalidArgumentError for a datatype that has no order.
    """
    if array.dtype.kind not in _KINDS or datatype in {"FP16", "BF16"}:
        raise InvalidArgumentError(
            f"class result not available for output due to unsupported type '{datatype}'"
        )
    batched = has_batch and array.ndim > 0
    rows = array.reshape(len(array), -1) if batched and array.size else array.reshape(1, -1)
    if rows.shape[1] > _ELEMENTS_MAX:
        raise InvalidArgumentError("classification output tensor too large")
    if batched and not array.size:
        rows = np.empty((len(array), 0), array.dtype)
    order = _descending(rows)[:, :count]
    values = np.take_along_axis(rows, order, axis=1)
    texts = np.empty(order.shape, object)
    # As std::to_string: six digits behind the point.
    form = "{:f}" if array.dtype.kind == "f" else "{}"
    for at in np.ndindex(*order.shape):
        index = int(order[at])
        text = f"{form.format(values[at])}:{index}"
        if index < len(labels):
            text += f":{labels[index]}"
        texts[at] = text
    return texts if batched else texts[0]


def _descending(rows: Array) -> Array:
    if rows.dtype.kind == "f":
        rows = np.where(np.isnan(rows), -np.inf, rows)
    # Turned round twice, so that of equal values the first comes first.
    last = rows.shape[1] - 1
    order: Array = last - np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1]
    return order
