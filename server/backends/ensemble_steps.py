"""One step of an ensemble: what its model is fed, what it made, and where it failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.errors import (
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from server.backends.ensemble_plan import Step
from server.execution.engine import Array
from server.execution.lots import Timing
from server.models.loaded import LoadedModel, ServedModel
from server.protocol.tensors import Tensor, bytes_from_session


def fed(step: Step, model: ServedModel, tensors: Mapping[str, Array]) -> tuple[list[Array], int]:
    """Return the model's feeds, in its order, and their rows. Raises InvalidArgumentError."""
    given = [
        Tensor(name, spec.datatype, tensors[tensor])
        for name, tensor in step.inputs
        if (spec := model.inputs.get(name)) is not None
    ]
    return model.check(given, wanted(step))


def wanted(step: Step) -> list[str]:
    """Return the outputs of its model that the step takes."""
    return [name for name, _ in step.outputs]


def made(
    ensemble: str, step: Step, model: ServedModel, arrays: Sequence[Array]
) -> dict[str, Array]:
    """Return the ensemble's tensors out of the outputs, which are in the signature's order.

    Raises InternalError where one is missing.
    """
    by_name: dict[str, tuple[str, Any]] = {
        spec.name: (spec.datatype, array)
        for spec, array in zip(model.outputs.values(), arrays, strict=True)
    }
    tensors: dict[str, Array] = {}
    for name, tensor in step.outputs:
        datatype, array = by_name[name]
        if array is None:
            raise InternalError(
                f"in ensemble '{ensemble}', step '{step.model}' gave no output '{name}'"
            )
        if datatype == "BYTES" and isinstance(model, LoadedModel):
            array = bytes_from_session(array)
        tensors[tensor] = array
    return tensors


def placed(ensemble: str, error: HeadraceError) -> HeadraceError:
    """Return a step's error as the ensemble's caller gets it."""
    text = f"in ensemble '{ensemble}', {error.message}"
    if isinstance(error, InvalidArgumentError):
        return InvalidArgumentError(text)
    if isinstance(error, NotFoundError):  # it was there when the ensemble was loaded
        return UnavailableError(text)
    return error


def add_timing(total: Timing, timing: Timing) -> None:
    """Add a step's times to those of all steps, as if none ran beside another."""
    total.queue_ns += timing.queue_ns
    total.input_ns += timing.input_ns
    total.infer_ns += timing.infer_ns
    total.output_ns += timing.output_ns
