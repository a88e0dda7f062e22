"""Signatures out of configurations."""

from __future__ import annotations

from typing import Any

from server.models.loaded import TensorSignature
from server.models.pbtxt import oip_datatype


def signatures(tensors: Any, max_batch_size: int) -> list[TensorSignature]:
    """Return the full shapes of a configuration's tensors, the batch dimension in front."""
    batch = (-1,) if max_batch_size > 0 else ()
    result = []
    for tensor in tensors:
        datatype = oip_datatype(tensor.data_type)
        result.append(TensorSignature(tensor.name, datatype, (*batch, *tensor.dims)))
    return result
