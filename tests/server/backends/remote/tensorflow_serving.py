"""A stand-in for TensorFlow Serving, as strict as its REST documentation: what that does not allow
is an error here, with the status and the form that it gives errors."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from aiohttp import web

PATH = re.compile(
    r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?(?:/(metadata)|:(predict))?"
)
DTYPES = {
    "DT_FLOAT": np.float32, "DT_DOUBLE": np.float64, "DT_INT64": np.int64, "DT_UINT8": np.uint8,
    "DT_BOOL": np.bool_, "DT_STRING": object,
}  # fmt: skip
Tensors = dict[str, tuple[str, list[int] | None]]


class RefusedError(Exception):
    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


class Signature:
    def __init__(
        self, inputs: Tensors, outputs: Tensors, run: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.run = run


def shape_of(value: Any) -> list[int]:
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def leaf(value: Any, dtype: str) -> Any:
    if dtype == "DT_STRING":
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str):
            return base64.b64decode(value["b64"], validate=True)
    elif dtype == "DT_BOOL":
        if isinstance(value, bool):
            return value
    elif dtype in {"DT_FLOAT", "DT_DOUBLE"}:
        if isinstance(value, int | float) and not isinstance(value, bool):
            digits = 24 if dtype == "DT_FLOAT" else 53
            if isinstance(value, int) and abs(value) >= 1 << digits:
                raise RefusedError(
                    400, f"Cannot convert JSON value: {value} without loss of precision."
                )
            if math.isfinite(value) and abs(value) > np.finfo(DTYPES[dtype]).max:
                raise RefusedError(
                    400, f"Cannot convert JSON value: {value} without loss of precision."
                )
            return value
    elif isinstance(value, int) and not isinstance(value, bool):
        limits = np.iinfo(DTYPES[dtype])
        if limits.min <= value <= limits.max:
            return value
    raise RefusedError(400, f"JSON Value: {value} is not of expected type: {dtype}")


def tensor(value: Any, dtype: str, declared: list[int] | None) -> np.ndarray[Any, Any]:
    shape = shape_of(value)
    flat: list[Any] = []

    def walk(value: Any, level: int) -> None:
        if not isinstance(value, list):
            if level != len(shape):
                raise RefusedError(400, f"found at incorrect level: {level + 1} in the JSON DOM.")
            flat.append(leaf(value, dtype))
            return
        if level >= len(shape) or len(value) != shape[level]:
            raise RefusedError(400, f"Encountered list at unexpected size: {len(value)}")
        for each in value:
            walk(each, level + 1)

    walk(value, 0)
    if declared is not None and (
        len(shape) != len(declared)
        or any(want not in {-1, size} for want, size in zip(declared, shape, strict=True))
    ):
        raise RefusedError(400, f"input must be of shape {declared}, got {shape}")
    array = np.empty(len(flat), DTYPES[dtype])
    array[:] = flat
    return array.reshape(shape)


def said(name: str, array: np.ndarray[Any, Any]) -> Any:
    if array.dtype != object:
        return array.tolist()
    values = np.empty(array.shape, object)
    for at, value in np.ndenumerate(array):
        is_bytes = name.endswith("_bytes")
        values[at] = {"b64": base64.b64encode(value).decode()} if is_bytes else value.decode()
    return values.tolist()


class TensorflowServing:
    """Models by (name, version); a label is another name of a version."""

    def __init__(self, models: dict[str, dict[str, Signature]]) -> None:
        self.models = models
        self.state = "AVAILABLE"
        self.paths: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.errors: list[RefusedError] = []
        self.raw: bytes | None = None  # what is answered to a predict request instead
        self.hang = False
        self.left = asyncio.Event()
        self.connections: set[Any] = set()

    async def start(self, tls: Any = None) -> str:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self.handle)
        # As it notices, so a caller who leaves can be seen.
        self.runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        return f"127.0.0.1:{self.runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self.runner.cleanup()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.connections.add(request.transport)
        self.paths.append(f"{request.method} {request.path}")
        try:
            body = await self.answer(request)
        except RefusedError as refused:
            text = json.dumps({"error": refused.words})
            return web.Response(status=refused.status, text=text, content_type="application/json")
        return web.Response(body=body, content_type="application/json")

    async def answer(self, request: web.Request) -> bytes:
        match = PATH.fullmatch(request.path)
        if match is None or (request.method == "POST") != bool(match[5]):
            raise RefusedError(400, f"Malformed request: {request.method} {request.path}")
        name, version, label, metadata, predict = match.groups()
        if name not in self.models or version not in {None, "7"} or label not in {None, "stable"}:
            raise RefusedError(404, f"Servable not found for request: Latest({name})")
        signatures = self.models[name]
        if metadata:
            return json.dumps(described(name, signatures)).encode()
        if not predict:
            status = {"error_code": "OK", "error_message": ""}
            version_status = {"version": "7", "state": self.state, "status": status}
            return json.dumps({"model_version_status": [version_status]}).encode()
        return await self.predicted(signatures, await request.read())

    async def predicted(self, signatures: dict[str, Signature], data: bytes) -> bytes:
        if self.errors:
            raise self.errors.pop(0)
        if self.hang:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.left.set()
                raise
        try:
            body = json.loads(data)
        except ValueError as error:
            raise RefusedError(400, f"JSON Parse error: {error}") from None
        if not isinstance(body, dict) or ("instances" in body) == ("inputs" in body):
            raise RefusedError(400, "Request must have one of 'instances' and 'inputs'")
        self.bodies.append(body)
        signature = signatures.get(body.pop("signature_name", "serving_default"))
        if signature is None:
            raise RefusedError(400, "Serving signature key not found.")
        rows = "instances" in body
        found = signature.run(given(body, signature, rows))
        assert found.keys() == signature.outputs.keys()
        if self.raw is not None:
            return self.raw
        if rows and len({len(array) for array in found.values()}) != 1:
            raise RefusedError(400, "Tensor has inconsistent batch size")
        listed = {name: said(name, array) for name, array in found.items()}
        if len(listed) == 1:
            (answer,) = listed.values()
        elif rows:
            answer = [
                dict(zip(listed, row, strict=True)) for row in zip(*listed.values(), strict=True)
            ]
        else:
            answer = listed
        return json.dumps({"predictions" if rows else "outputs": answer}, indent=4).encode()


def given(body: dict[str, Any], signature: Signature, rows: bool) -> dict[str, Any]:
    if body.keys() - {"instances", "inputs"}:
        raise RefusedError(400, "unknown key")
    if not rows:
        value = body["inputs"]
        named = value if isinstance(value, dict) and "b64" not in value else None
        columns = named if named is not None else {next(iter(signature.inputs)): value}
        if named is None and len(signature.inputs) != 1:
            raise RefusedError(400, "inputs must be named")
    else:
        instances = body["instances"]
        if not isinstance(instances, list) or not instances:
            raise RefusedError(400, "'instances' must be a list with at least one element")
        if all(isinstance(each, dict) and "b64" not in each for each in instances):
            if any(each.keys() != instances[0].keys() for each in instances):
                raise RefusedError(400, "Failed to process element: inconsistent inputs")
            columns = {name: [each[name] for each in instances] for name in instances[0]}
        elif len(signature.inputs) == 1:
            columns = {next(iter(signature.inputs)): instances}
        else:
            raise RefusedError(400, "instances must be objects")
    if columns.keys() != signature.inputs.keys():
        raise RefusedError(400, f"Missing or unknown inputs: {sorted(columns)}")
    return {
        name: tensor(columns[name], dtype, shape)
        for name, (dtype, shape) in signature.inputs.items()
    }


def described(name: str, signatures: dict[str, Signature]) -> dict[str, Any]:
    def tensors(told: Tensors) -> dict[str, Any]:
        return {
            each: {
                "dtype": dtype,
                "tensor_shape": {
                    "dim": [{"size": str(size), "name": ""} for size in shape or []],
                    "unknown_rank": shape is None,
                },
                "name": f"{each}:0",
            }
            for each, (dtype, shape) in told.items()
        }

    all_of_them = {
        each: {
            "inputs": tensors(signature.inputs),
            "outputs": tensors(signature.outputs),
            "method_name": "tensorflow/serving/predict",
        }
        for each, signature in signatures.items()
    }
    return {
        "model_spec": {"name": name, "signature_name": "", "version": "7"},
        "metadata": {"signature_def": {"signature_def": all_of_them}},
    }
