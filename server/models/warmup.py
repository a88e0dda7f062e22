"""`model_warmup` of a configuration: runs that a model has behind it before it answers.

A sample's inputs are zeros, random bits or a file of the folder `warmup/` beside the versions, as
Triton has it. A sample that fails is a load that fails: whoever wrote it wants to know.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import FailedPreconditionError, HeadraceError
from server.models.loaded import ServedModel
from server.models.pbtxt import config_datatype
from server.protocol.tensors import DATATYPES, Tensor, from_raw

Array = npt.NDArray[Any]
_FOLDER = "warmup"
# Of all inputs of one sample: a configuration must not be able to fill the memory.
_SAMPLE_BYTES_MAX = 1 << 30
_COUNT_MAX = 10_000


def run_samples(model: ServedModel, folder: Path) -> None:
    """Run every sample of the model's configuration. Raises FailedPreconditionError."""
    for sample in model.config.model_warmup:
        if sample.batch_size == 0:
            continue
        where = f"warmup sample '{sample.name}'"
        try:
            feeds, rows = model.check(list(_tensors(model, sample, folder, where)), ())
            if sample.count > _COUNT_MAX:
                raise FailedPreconditionError("count is too large", expected=_COUNT_MAX)
            for _ in range(max(sample.count, 1)):
                model.warm_up_with(feeds, rows)
        except HeadraceError as error:
            raise FailedPreconditionError(f"failed to run {where}: {error.message}") from error


def _tensors(model: ServedModel, sample: Any, folder: Path, where: str) -> Iterator[Tensor]:
    """Yield the inputs of a sample, all of its rows."""
    from tritonclient.grpc.model_config_pb2 import DataType

    rows = sample.batch_size if model.max_batch_size > 0 else 1
    size = 0
    for name, source in sorted(sample.inputs.items()):
        spec = model.inputs.get(name)
        if spec is None:
            raise FailedPreconditionError(f"the model has no input '{name}'")
        if DataType.Name(source.data_type) != config_datatype(spec.datatype):
            raise FailedPreconditionError(
                f"data_type of input '{name}' differs",
                expected=config_datatype(spec.datatype),
                got=DataType.Name(source.data_type),
            )
        shape = list(source.dims)
        if any(dim < 0 for dim in shape):
            raise FailedPreconditionError(
                f"all variable-size dimensions of input '{name}' have to be specified"
            )
        size += rows * math.prod(shape) * (DATATYPES[spec.datatype].dtype.itemsize or 1)
        if size > _SAMPLE_BYTES_MAX:
            raise FailedPreconditionError("the sample is too large", expected=_SAMPLE_BYTES_MAX)
        row = _row(source, spec.datatype, shape, folder, f"input '{name}' of {where}")
        if model.max_batch_size > 0:
            row = np.repeat(row[np.newaxis], rows, axis=0)
        yield Tensor(name, spec.datatype, row)


def _row(source: Any, datatype: str, shape: list[int], folder: Path, where: str) -> Array:
    kind = source.WhichOneof("input_data_type")
    dtype = DATATYPES[datatype].dtype
    if kind == "input_data_file":
        data = _file(folder / _FOLDER, source.input_data_file, where)
        if datatype != "BYTES":
            size = math.prod(shape) * dtype.itemsize
            if len(data) < size:
                raise FailedPreconditionError(
                    f"{where}: the file is too short", expected=f"{size} bytes", got=len(data)
                )
            data = data[:size]
        return from_raw(data, datatype, tuple(shape), where)
    if kind is None:
        raise FailedPreconditionError(
            f"{where} has none of zero_data, random_data, input_data_file"
        )
    if datatype == "BYTES":
        return np.full(shape, b"", object)
    if kind == "zero_data":
        return np.zeros(shape, dtype)
    # The same each time: a load that fails fails again.
    random = np.random.default_rng(zlib.crc32(where.encode()))
    if datatype == "BOOL":
        bits = np.frombuffer(random.bytes(math.prod(shape)), np.uint8) & 1
        return bits.astype(bool).reshape(shape)
    raw = random.bytes(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(raw, dtype).reshape(shape)


def _file(folder: Path, name: str, where: str) -> bytes:
    """Return the content of a file that lies in the folder, and nowhere else."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise FailedPreconditionError(f"{where}: there is no file {_FOLDER}/{name}")
    if path.stat().st_size > _SAMPLE_BYTES_MAX:
        raise FailedPreconditionError(f"{where}: the file is too large", expected=_SAMPLE_BYTES_MAX)
    return path.read_bytes()
