"""What an ONNX graph says of itself: the datatypes and shapes of its tensors, and how it batches.

`graph`, here, has `inputs` and `outputs` as onnxruntime describes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from headrace.errors import FailedPreconditionError
from server.protocol.tensors import FROM_ONNXRUNTIME

# Triton's `default-max-batch-size` is 4 and surprises everyone who meets it; it is a setting there.
DEFAULT_MAX_BATCH_SIZE = 4096


class GraphTensor(NamedTuple):
    """An OIP datatype, and all sizes: -1 where the graph leaves one open."""

    datatype: str
    dims: list[int]


def graph_tensors(nodes: Sequence[Any], kind: str) -> dict[str, GraphTensor]:
    """Return the tensors by name; `kind` is what an error calls them.

    Raises FailedPreconditionError for a type that no protocol carries.
    """
    known = {}
    for node in nodes:
        datatype = FROM_ONNXRUNTIME.get(node.type)
        if datatype is None:
            raise FailedPreconditionError(
                f"{kind} '{node.name}' of the graph is of a type that the protocol cannot carry",
                got=node.type,
                mend="export it as a tensor (scikit-learn classifiers: zipmap=False)",
            )
        dims = [size if isinstance(size, int) and size >= 0 else -1 for size in node.shape]
        known[node.name] = GraphTensor(datatype, dims)
    return known


def can_batch(graph: Any) -> bool:
    """Return whether all first dimensions are dynamic and, where named, have one name."""
    firsts = [node.shape[0] if node.shape else 0 for node in (*graph.inputs, *graph.outputs)]
    if any(isinstance(first, int) for first in firsts):
        return False
    return len({first for first in firsts if first is not None}) <= 1
