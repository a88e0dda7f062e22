"""Golden rows: inputs with the outputs that the model gave them where it was made.

`golden.arrow` is an Arrow IPC file with one column per tensor of the signature, each a
fixed_size_list of the tensor's width: whoever loads the bundle can ask whether it answers the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.errors import InvalidArgumentError


def golden_bytes(tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Return the file for tensors float32 [N, width] by name, all with the same N."""
    columns = {
        name: pa.FixedSizeListArray.from_arrays(
            pa.array(values.ravel(), pa.float32()), values.shape[1]
        )
        for name, values in tensors.items()
    }
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def read_golden(data: bytes) -> dict[str, NDArray[np.float32]]:
    """Return the tensors float32 [N, width] by name.

    Raises InvalidArgumentError when `data` is not such a file.
    """
    try:
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all().combine_chunks()
    except pa.ArrowInvalid as error:
        raise InvalidArgumentError("not an Arrow file", where="golden.arrow") from error
    tensors = {}
    for field in table.schema:
        if not pa.types.is_fixed_size_list(field.type) or field.type.value_type != pa.float32():
            raise InvalidArgumentError(
                f"column {field.name!r} is no tensor",
                where="golden.arrow",
                expected="fixed_size_list<float>",
                got=field.type,
            )
        values = pc.list_flatten(table[field.name]).to_numpy()
        tensors[field.name] = values.reshape(-1, field.type.list_size)
    return tensors
