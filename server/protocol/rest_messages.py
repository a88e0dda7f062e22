"""Inference requests and answers as REST carries them: JSON, raw tensors behind it, compression."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from headrace.errors import HeadraceError, InvalidArgumentError, UnimplementedError
from server.protocol.oip import InferAnswer
from server.protocol.tensors import NOT_IN_JSON, to_raw
from server.wire.routes import Response, advice, json_response

LENGTH_HEADER = "Inference-Header-Content-Length"
BINARY = "application/octet-stream"
COMPRESS_BYTES_MIN = 1024  # below, compressing costs more than it saves
WINDOW_BITS = {"gzip": 31, "deflate": 15}
_T = TypeVar("_T")


class Input(msgspec.Struct):
    """One input. `data` is any JSON: what it must be depends on the datatype."""

    name: str
    datatype: str
    shape: list[int]
    data: Any = None
    parameters: dict[str, Any] = {}


class Output(msgspec.Struct):
    """One output that is asked for."""

    name: str
    parameters: dict[str, Any] = {}


class InferBody(msgspec.Struct):
    """The JSON of an inference request."""

    inputs: list[Input]
    outputs: list[Output] = []
    id: str = ""
    parameters: dict[str, bool | int | float | str] = {}


class BinaryChoice:
    """Which outputs go back as raw bytes: the output's own word, else the request's."""

    def __init__(self, call: InferBody | None) -> None:
        self._default = call is None or bool(call.parameters.get("binary_data_output", False))
        self._own = {
            output.name: bool(output.parameters["binary_data"])
            for output in (call.outputs if call is not None else [])
            if "binary_data" in output.parameters
        }

    def of(self, name: str) -> bool:
        """Return whether this output is raw."""
        return self._own.get(name, self._default)


def decode_json(data: bytes) -> InferBody:
    """Return the call. NaN and Infinity, which JSON lacks and clients send, are taken too."""
    try:
        return msgspec.json.decode(data, type=InferBody)
    except msgspec.ValidationError as error:
        raise InvalidArgumentError(f"the request is not an inference request: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return msgspec.convert(json.loads(data), type=InferBody)
    except msgspec.ValidationError as error:
        raise InvalidArgumentError(f"the request is not an inference request: {error}") from None
    except (ValueError, RecursionError):
        raise InvalidArgumentError("failed to parse the request JSON buffer") from None


def json_as(text: bytes, kind: type[_T]) -> _T:
    """Return other JSON of the protocol. Raises InvalidArgumentError, in Triton's words."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidArgumentError("failed to parse the request JSON buffer") from None


def encode(answer: InferAnswer, binary: BinaryChoice) -> Response:
    """Return the response of an answer. Raises InvalidArgumentError for what JSON cannot carry."""
    head: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version}
    if answer.request_id:
        head["id"] = answer.request_id
    if answer.parameters:
        head["parameters"] = answer.parameters
    head["outputs"] = outputs = []
    raws: list[bytes | memoryview] = []
    for output in answer.outputs:
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": output.array.shape,
        }
        if output.is_placed:
            pass
        elif binary.of(output.name):
            raw = to_raw(output.array, output.datatype)
            entry["parameters"] = {"binary_data_size": len(raw)}
            raws.append(raw)
        elif output.datatype in NOT_IN_JSON:
            raise InvalidArgumentError(
                f"sending {output.datatype} data via JSON is not supported. Please use the binary "
                f"data format for output {output.name}"
            )
        else:
            entry["data"] = output.array.reshape(-1).tolist()
        outputs.append(entry)
    text = msgspec.json.encode(head)
    if not any(raws):
        return Response(200, text)
    return Response(200, [text, *raws], BINARY, ((LENGTH_HEADER, f"{len(text)}"),))


def accepted_coding(headers: Mapping[str, str]) -> str:
    """Return the first content coding that the client accepts and we know, "" for none."""
    accepted = headers.get("accept-encoding", "")
    if not accepted:
        return ""
    wanted = [part.split(";")[0].strip().lower() for part in accepted.split(",")]
    return next((name for name in wanted if name in WINDOW_BITS), "")


def compressed(headers: Mapping[str, str], response: Response) -> Response:
    """Apply the first content coding that the client accepts and we know."""
    coding = accepted_coding(headers)
    assert isinstance(response.body, bytes | list)
    body = b"".join(response.body) if isinstance(response.body, list) else response.body
    if not coding or len(body) < COMPRESS_BYTES_MIN:
        return response
    deflater = zlib.compressobj(1, zlib.DEFLATED, WINDOW_BITS[coding])
    response.body = deflater.compress(body) + deflater.flush()
    response.headers = (*response.headers, ("Content-Encoding", coding))
    return response


def error_of(error: HeadraceError) -> Response:
    """Return `{"error": text}` with Triton's status, which knows no 409."""
    status = 400 if error.code == "already_exists" else error.status.http
    response = json_response({"error": error.message}, status)
    response.headers = advice(error)
    if isinstance(error, UnimplementedError):
        response.headers += (("Accept-Encoding", "gzip, deflate"),)
    return response
