"""The generate extension: flat JSON in, flat JSON out, one response or a stream of events.

A field of the request that is called as an input is that tensor, any other one is a parameter. Of
an output of one element goes back the element, of others the list (extension_generate.md).
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from headrace.errors import HeadraceError, InternalError, InvalidArgumentError
from server.models.loaded import ServedModel, TensorSignature
from server.protocol.oip import InferAnswer, InferCall, InferenceProtocol, Parameter, ResponsePart
from server.protocol.rest_messages import error_of, json_as
from server.protocol.tensors import NOT_IN_JSON, Tensor, from_values
from server.wire.handlers import Context, as_headrace_error
from server.wire.routes import Response, json_response

EVENTS = "text/event-stream; charset=utf-8"
_NESTED = "parameters"
_ID = "id"
_ONE_RESPONSE = (
    "generate expects model to produce exactly 1 response, use generate stream for model that "
    "generates various number of responses"
)


def call_of(model: ServedModel, version: str, body: bytes) -> InferCall:
    """Return the call in a generate request. Raises InvalidArgumentError naming the field."""
    fields = json_as(body, dict[str, Any])
    nested = fields.pop(_NESTED, {})
    if not isinstance(nested, dict):
        raise InvalidArgumentError(f"Expected JSON object for keyword: '{_NESTED}'")
    call = InferCall(model.name, version, "", [])
    if _ID not in model.inputs and isinstance(fields.get(_ID), str):
        call.request_id = fields.pop(_ID)
    for name, value in (fields | nested).items():
        spec = model.inputs.get(name)
        if spec is not None:
            call.tensors.append(_tensor(spec, value, model.name))
        elif isinstance(value, bool | int | float | str):
            call.parameters[name] = value
        else:
            raise InvalidArgumentError(
                f"parameter '{name[:64]}' is no input of model '{model.name}'",
                expected="a string, a number or a boolean",
            )
    return call


def _tensor(spec: TensorSignature, value: Any, model: str) -> Tensor:
    where = f"input '{spec.name}' for model '{model}'"
    values = value if isinstance(value, list) else [value]
    shape = _shape(spec.shape, len(values), where)
    return Tensor(spec.name, spec.datatype, from_values(values, spec.datatype, shape, where))


def _shape(shape: tuple[int, ...], count: int, where: str) -> tuple[int, ...]:
    """Return a shape of `count` elements: the innermost open dimension takes what there is."""
    fixed = math.prod(size for size in shape if size >= 0)
    open_dims = [at for at, size in enumerate(shape) if size < 0]
    found = [max(size, 1) if size < 0 else size for size in shape]
    if fixed and count % fixed == 0:
        if open_dims:
            found[open_dims[-1]] = count // fixed
            return tuple(found)
        if count == fixed:
            return tuple(found)
    raise InvalidArgumentError(
        f"{where} has {count} values, which do not fit its shape", expected=list(shape)
    )


def fields_of(answer: InferAnswer) -> dict[str, Any]:
    """Return a response as flat fields. Raises InvalidArgumentError for what JSON lacks."""
    fields: dict[str, Any] = {}
    if answer.request_id:
        fields[_ID] = answer.request_id
    fields |= {"model_name": answer.model, "model_version": answer.version}
    parameters: dict[str, Parameter] = answer.parameters
    fields |= parameters
    for output in answer.outputs:
        if output.datatype in NOT_IN_JSON:
            raise InvalidArgumentError(
                f"output '{output.name}' is {output.datatype}, which JSON cannot carry"
            )
        values = output.array.reshape(-1).tolist()
        if output.datatype == "BYTES":
            values = [
                value.decode(errors="replace") if isinstance(value, bytes) else str(value)
                for value in values
            ]
        fields[output.name] = values[0] if len(values) == 1 else values
    return fields


class Generate:
    """Both operations of the extension."""

    def __init__(self, protocol: InferenceProtocol) -> None:
        self._protocol = protocol

    async def once(self, model: str, version: str, body: bytes, context: Context) -> Response:
        """Answer with the one response of a model. Raises InternalError where there is not one."""
        found: list[ResponsePart] = []
        call = call_of(self._protocol.model(model, version), version, body)
        async with aclosing(self._protocol.responses(call, context)) as parts:
            async for part in parts:
                if part.error is not None:
                    raise part.error
                if not part.empty:
                    found.append(part)
                if len(found) > 1:
                    break
        if len(found) != 1:
            raise InternalError(_ONE_RESPONSE)
        return json_response(fields_of(found[0].answer))

    async def stream(self, model: str, version: str, body: bytes, context: Context) -> Response:
        """Answer with events. The first one decides the status; later errors are events."""
        call = call_of(self._protocol.model(model, version), version, body)
        events = self._events(self._protocol.responses(call, context))
        try:
            error, first = await anext(events)
        except StopAsyncIteration:
            return Response(200, b"", EVENTS)
        status = 200 if error is None else error_of(error).status
        return Response(status, _chained(first, events), EVENTS)

    @staticmethod
    async def _events(
        parts: AsyncGenerator[ResponsePart],
    ) -> AsyncGenerator[tuple[HeadraceError | None, bytes]]:
        """Yield events and, of those that are one, the error. The first one that is raised, and no
        part of a response, is raised here, too."""
        began = False
        async with aclosing(parts):
            try:
                async for part in parts:
                    began = True
                    if part.error is not None:
                        yield part.error, _event({"error": part.error.message})
                    elif not part.empty:
                        yield None, _event(fields_of(part.answer))
            except Exception as problem:
                if not began:
                    raise
                error = as_headrace_error(problem, "generate_stream")
                yield error, _event({"error": error.message})


def _event(fields: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(fields)  # it has no line breaks


async def _chained(
    first: bytes, events: AsyncGenerator[tuple[HeadraceError | None, bytes]]
) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        yield first
        async for _, event in events:
            yield event
