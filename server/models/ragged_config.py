"""`allow_ragged_batch` and `batch_input` of a configuration, read and checked as Triton does."""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import model_config_pb2

from server.execution.ragged import BatchInput, Kind
from server.models.pbtxt import Added, oip_datatype, wrong
from server.protocol.tensors import DATATYPES

_DATATYPES = ("INT32", "FP32")


def ragged_inputs(config: Any) -> frozenset[str]:
    """Return the inputs whose size may differ between the requests of a batch."""
    return frozenset(tensor.name for tensor in config.input if tensor.allow_ragged_batch)


def batch_inputs(config: Any) -> list[BatchInput]:
    """Return the inputs that are made of a batch. Raises FailedPreconditionError."""
    dims = {tensor.name: tensor.dims for tensor in config.input}
    found = []
    for entry in config.batch_input:
        kind = model_config_pb2.BatchInput.Kind.Name(entry.kind)
        datatype = oip_datatype(entry.data_type)
        if config.max_batch_size < 1:
            raise wrong("batch_input is of batches", "max_batch_size above 0", 0)
        if len(entry.source_input) != 1:
            raise wrong(
                f"batch input kind '{kind}' expects 1 source input", 1, len(entry.source_input)
            )
        if entry.source_input[0] not in dims:
            raise wrong("unknown source input name", ", ".join(dims), entry.source_input[0])
        if datatype not in _DATATYPES:
            raise wrong("data_type of a batch_input is none", ", ".join(_DATATYPES), datatype)
        if not entry.target_name:
            raise wrong("a batch_input has no target_name", "an input of the graph", "none")
        found += [
            BatchInput(name, Kind(kind), entry.source_input[0], DATATYPES[datatype].dtype)
            for name in entry.target_name
        ]
    return found


def made_of_batches(config: Any) -> Added:
    """Return the inputs that are made of a batch as if they were configured."""
    ranks = {tensor.name: len(tensor.dims) for tensor in config.input}
    inputs = [
        model_config_pb2.ModelInput(
            name=entry.name,
            data_type=f"TYPE_{'INT32' if entry.dtype.kind == 'i' else 'FP32'}",
            dims=[ranks[entry.source]] if entry.kind is Kind.ITEM_SHAPE else [],
        )
        for entry in batch_inputs(config)
    ]
    return Added(inputs, ())
