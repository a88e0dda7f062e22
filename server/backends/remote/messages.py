"""Requests to a remote server and its replies, as bytes; its statuses, as our errors."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from headrace.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
)
from server.execution.engine import Array, Parameter
from server.models.loaded import TensorSignature
from server.protocol.oip_grpc import set_parameter
from server.protocol.tensors import DATATYPES, from_raw, from_values, to_raw
from server.wire.grpc.status import StatusCode

_LOG = logging.getLogger(__name__)
_WORDS_MAX = 512
# Whose words are for the caller.
_SAID: dict[int, type[HeadraceError]] = {
    StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    StatusCode.UNIMPLEMENTED: UnimplementedError,
}
# Cancelled by the other side, no such model any more, unavailable.
_GONE = {StatusCode.CANCELLED, StatusCode.NOT_FOUND, StatusCode.UNAVAILABLE}


def request_bytes(
    model: str,
    version: str,
    request_id: str,
    inputs: Sequence[tuple[TensorSignature, Array]],
    wanted: Sequence[str],
    parameters: Mapping[str, Parameter],
) -> bytes:
    """Return a ModelInferRequest."""
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, value in parameters.items():
        set_parameter(request.parameters[name], value)
    for spec, array in inputs:
        request.inputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        request.raw_input_contents.append(to_raw(array, spec.datatype))
    for name in wanted:
        request.outputs.add(name=name)
    return bytes(request.SerializeToString())


def outputs_of(
    reply: bytes, specs: Sequence[TensorSignature], wanted: Sequence[str]
) -> list[Array | None]:
    """Return the arrays of a ModelInferResponse, None for those not `wanted` (empty: all are).

    Raises InternalError for a reply that does not fit the signature.
    """
    try:
        arrays = _outputs(service_pb2.ModelInferResponse.FromString(reply), specs)
    except (DecodeError, InvalidArgumentError) as error:
        raise misfit(str(error)) from error
    check_wanted(arrays, specs, wanted)
    return arrays


def _outputs(response: Any, specs: Sequence[TensorSignature]) -> list[Array | None]:
    raws = response.raw_output_contents
    if raws and len(raws) != len(response.outputs):
        raise misfit("another number of contents than of outputs")
    found: dict[str, Array] = {}
    known = {spec.name: spec for spec in specs}
    for at, output in enumerate(response.outputs):
        spec = known.get(output.name)
        if spec is None or output.datatype != spec.datatype:
            raise misfit(f"an output '{output.name[:64]}' of {output.datatype[:16]}")
        shape, where = list(output.shape), f"output '{spec.name}'"
        if not fits(shape, spec):
            raise misfit(f"{where} of shape {shape[:8]}")
        if raws:
            found[spec.name] = from_raw(raws[at], spec.datatype, shape, where)
        else:
            field = DATATYPES[spec.datatype].contents
            values = list(getattr(output.contents, field)) if field else []
            found[spec.name] = from_values(values, spec.datatype, shape, where)
    return [found.get(spec.name) for spec in specs]


def fits(shape: Sequence[int], spec: TensorSignature) -> bool:
    """Return whether an output of this shape is as its signature says."""
    return len(shape) == len(spec.shape) and all(
        want in {-1, size} for want, size in zip(spec.shape, shape, strict=True)
    )


def check_wanted(
    arrays: Sequence[Array | None], specs: Sequence[TensorSignature], wanted: Sequence[str]
) -> None:
    """Raise InternalError where an output that is `wanted` (empty: all are) did not come."""
    for spec, array in zip(specs, arrays, strict=True):
        if array is None and (not wanted or spec.name in wanted):
            raise misfit(f"no output '{spec.name}'")


def misfit(got: str) -> InternalError:
    """Return the error of a reply that does not fit the signature; what it `got` is logged."""
    _LOG.error("a remote server's reply does not fit its own signature: %s", got)
    return InternalError(
        "the remote server's reply does not fit its signature", mend="the server's log has more"
    )


def error_of(number: int, words: str) -> HeadraceError:
    """Return what a gRPC status means to our caller; `words` are the remote server's."""
    if number in _SAID:
        return _SAID[number](words[:_WORDS_MAX] or "the remote server says no more")
    _LOG.warning("a remote server answered with status %d: %s", number, words[:_WORDS_MAX])
    if number == StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceededError("the time ran out while the remote server was asked")
    if number in _GONE:
        return UnavailableError("the remote server does not answer for the model now")
    return InternalError("the remote server failed", mend="the server's log has its words")
