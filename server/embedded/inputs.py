"""What callers hand over in Python, as the server's tensors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.errors import InvalidArgumentError
from server.protocol.tensors import DATATYPES, Tensor, datatype_of_array


def tensor_of_array(name: str, value: npt.ArrayLike, datatype: str) -> Tensor:
    """Return the tensor of an array; what is none becomes one of `datatype` ("": of its values').

    Raises InvalidArgumentError naming it for what no tensor can hold.
    """
    where = f"inference input '{name}'"
    if isinstance(value, np.ndarray):
        array = value
    else:
        wanted = DATATYPES[datatype].dtype if datatype else None
        try:
            array = np.asarray(value, wanted)
        except (ValueError, TypeError, OverflowError):
            raise InvalidArgumentError(f"{where} is no array", expected=datatype or None) from None
    found = datatype_of_array(array, datatype or "FP32")
    if DATATYPES[found].dtype != array.dtype:
        raise InvalidArgumentError(
            f"{where} is of a type that no tensor has", expected=datatype or None, got=array.dtype
        )
    return Tensor(name, found, array)
