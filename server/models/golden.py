"""Golden inputs: a version answers what it answered where it was made, or it does not serve.

A bundle brings `golden.arrow`. In a plain repository `golden.json` beside the model is a request
and its answer as REST has them: `inputs` and `outputs` with name, datatype, shape and data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from headrace.errors import FailedPreconditionError, HeadraceError, InvalidArgumentError
from server.models.calibrated import Graph
from server.models.loaded import ServedModel
from server.protocol.tensors import Tensor, from_values
from trainer.bundle import Bundle
from trainer.golden import read_golden

Array = npt.NDArray[Any]
GOLDEN = "golden.json"
_TOLERANCE = 1e-5
_BYTES_MAX = 16 << 20


class _GoldenTensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any]

    def array(self) -> Array:
        return from_values(self.data, self.datatype, self.shape, f"'{self.name}'")


class _Golden(msgspec.Struct):
    """`tolerance` is absolute and relative; strings and whole numbers are equal."""

    inputs: list[_GoldenTensor]
    outputs: list[_GoldenTensor]
    tolerance: float = _TOLERANCE


def read_golden_file(folder: Path) -> bytes | None:
    """Return the golden input beside a model, where there is one; not much more than is allowed."""
    path = folder / GOLDEN
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return file.read(_BYTES_MAX + 1)


def check_golden(model: ServedModel, data: bytes) -> None:
    """Run the golden input and compare. Raises FailedPreconditionError that names the output."""
    if len(data) > _BYTES_MAX:
        raise FailedPreconditionError("the file is too large", where=GOLDEN, expected=_BYTES_MAX)
    try:
        golden = msgspec.convert(json.loads(data), _Golden)  # json: it has a word for NaN
        inputs = [Tensor(each.name, each.datatype, each.array()) for each in golden.inputs]
        wanted = {each.name: each.array() for each in golden.outputs}
        feeds, rows = model.check(inputs, list(wanted))
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise FailedPreconditionError(
            "not a request and its answer", where=GOLDEN, mend=str(error)[:200]
        ) from None
    except InvalidArgumentError as error:
        raise FailedPreconditionError(error.message, where=GOLDEN) from None
    if not wanted:
        raise FailedPreconditionError("there is no output to compare", where=GOLDEN)
    try:
        outputs = model.warm_up_with(feeds, rows)
    except HeadraceError as error:
        raise FailedPreconditionError(error.message, where=GOLDEN) from error
    found = dict(zip(model.outputs, outputs, strict=True))
    for name, expected in wanted.items():
        if not _alike(found[name], expected, golden.tolerance):
            raise FailedPreconditionError(
                f"output '{name}' is not what it was",
                where=GOLDEN,
                expected=f"within {golden.tolerance:g}",
                mend="copy the version again, or write what it answers now",
            )


def check_golden_rows(bundle: Bundle, graph: Graph) -> tuple[list[Array], list[Array]]:
    """Run a bundle's golden rows and compare; return them, an array an input of the graph, and what
    it said of them, an array an output. Raises FailedPreconditionError.
    """
    golden = bundle.manifest.golden
    tensors = read_golden(bundle.read(golden.file))
    missing = [node.name for node in graph.inputs if node.name not in tensors]
    if missing:
        raise FailedPreconditionError(
            "the golden rows lack an input", where=bundle.digest, got=missing[0]
        )
    rows = [tensors[node.name] for node in graph.inputs]
    outputs = graph.run(rows)
    for node, output in zip(graph.outputs, outputs, strict=True):
        wanted = tensors.get(node.name)
        if wanted is None:
            continue
        if output.shape != wanted.shape or not np.allclose(
            output, wanted, rtol=0.0, atol=golden.tolerance, equal_nan=True
        ):
            raise FailedPreconditionError(
                f"output '{node.name}' of the golden rows is not what it was when the model was "
                "made",
                where=bundle.digest,
                expected=f"within {golden.tolerance}",
                mend="compare the versions of onnxruntime",
            )
    return rows, outputs


def _alike(found: Array, expected: Array, tolerance: float) -> bool:
    if found.shape != expected.shape:
        return False
    if expected.dtype.kind == "f":
        return np.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    if expected.dtype.kind == "O":  # a session's strings are text, the protocol's are bytes
        return [str(text) for text in found.flat] == [text.decode() for text in expected.flat]
    return np.array_equal(found, expected)
