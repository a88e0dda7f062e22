"""Models of every backend behind the protocol, in a loop of their own."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np

from headrace.errors import HeadraceError
from server.execution.engine import Asked, Part
from server.execution.threads import RunThreads
from server.models.loaded import CalledModel
from server.models.repository import ModelRepository
from server.protocol.oip import InferAnswer, InferCall, InferenceProtocol
from server.protocol.oip_rest import InferenceRoutes
from server.protocol.tensors import Tensor, datatype_of_array
from server.wire.handlers import Context
from server.wire.http1.server import HttpServer
from server.wire.routes import Routes
from tests.server.protocol.test_oip import NothingReleased

WAIT_S = 60.0
SOCKET_WAIT_S = 30.0
HEAD = "import json, os, sys, time, threading, asyncio\nimport numpy as np\n"
IMPORT = "import triton_python_backend_utils as pb_utils\n\n"


def put_python(
    root: Path, name: str, body: str, config: str | None = None, version: int = 1
) -> Path:
    """Write a Python model; `body` is what stands in TritonPythonModel."""
    folder = root / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    indented = "".join(f"    {line}\n" for line in dedent(body).strip("\n").splitlines())
    code = f"{HEAD}{IMPORT}\nclass TritonPythonModel:\n{indented}"
    (folder / "model.py").write_text(code)
    if config is not None:
        (root / name / "config.pbtxt").write_text(dedent(config))
    return root / name


def config(
    inputs: str, outputs: str, more: str = "", *, batch: int = 0, backend: str = "python"
) -> str:
    """A configuration; tensors as `NAME:FP32:4 NAME:STRING:-1,2`."""
    lines = [f'backend: "{backend}"', f"max_batch_size: {batch}"]
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for tensor in tensors.split():
            name, datatype, dims = tensor.split(":")
            lines.append(f'{kind} {{ name: "{name}" data_type: TYPE_{datatype} dims: [{dims}] }}')
    return "\n".join([*lines, dedent(more)])


def tensors_of(inputs: dict[str, Any]) -> list[Tensor]:
    found = []
    for name, value in inputs.items():
        array = np.asarray(value)
        found.append(Tensor(name, datatype_of_array(array, "BYTES"), array))
    return found


class Served:
    """Models that serve, on so many `cores`. Use in a `with` block."""

    def __init__(self, root: Path, names: Sequence[str] | None = None, cores: int = 2) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._executor = RunThreads(2, cores)
        self._thread.start()
        self.repository: ModelRepository = self._made(root)
        self.protocol = InferenceProtocol(self.repository, NothingReleased(), lambda: True)
        self.run(self.repository.load_all(names))

    def _made(self, root: Path) -> ModelRepository:
        return ModelRepository(root, self._executor)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self.repository.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._executor.shutdown()

    def run(self, what: Coroutine[Any, Any, Any]) -> Any:
        """Run it in the loop and return what came of it."""
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(WAIT_S)

    def start(self, what: Coroutine[Any, Any, Any]) -> Any:
        """Start it in the loop; return its future."""
        return asyncio.run_coroutine_threadsafe(what, self._loop)

    @contextmanager
    def over_http(self) -> Iterator[tuple[str, int]]:
        """Answer by HTTP, too, as long as the block runs; yield the host and the port."""
        routes = Routes()
        InferenceRoutes(self.protocol).add_to(routes)
        server = HttpServer(routes)
        self.run(server.start("127.0.0.1", 0))
        yield "127.0.0.1", server.port
        self.run(server.drain(0))

    async def answer(
        self,
        model: str,
        inputs: dict[str, Any],
        *,
        request_id: str = "",
        wanted: Sequence[str] = (),
        parameters: dict[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> InferAnswer:
        deadline_ns = None
        if timeout_s is not None:
            deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        call = InferCall(
            model, "", request_id, tensors_of(inputs), list(wanted), dict(parameters or {})
        )
        return await self.protocol.infer(call, Context({}, deadline_ns))

    def infer(self, model: str, **inputs: Any) -> dict[str, Any]:
        """Return the outputs by name."""
        return outputs(self.run(self.answer(model, inputs)))

    def infers(self, model: str, many: Sequence[dict[str, Any]]) -> list[Any]:
        """Ask many at once; return outputs or errors."""

        async def all_of_them() -> list[Any]:
            answers = (self.answer(model, inputs) for inputs in many)
            return await asyncio.gather(*answers, return_exceptions=True)

        return [
            outputs(found) if isinstance(found, InferAnswer) else found
            for found in self.run(all_of_them())
        ]

    def stream(self, model: str, **inputs: Any) -> list[Part]:
        """Return all responses of a decoupled model."""

        async def collected() -> list[Part]:
            found = self.repository.get(model)
            assert isinstance(found, CalledModel)
            feeds, rows = found.check(tensors_of(inputs), ())
            async with aclosing(found.stream(feeds, rows, Asked())) as parts:
                return [part async for part in parts]

        answer: list[Part] = self.run(collected())
        return answer

    def reason(self, name: str) -> str:
        """Return why a model does not serve."""
        return next(entry.reason for entry in self.repository.index() if entry.name == name)

    def error(self, model: str, **inputs: Any) -> HeadraceError:
        """Return the error of a request that fails."""
        try:
            found = self.infer(model, **inputs)
        except HeadraceError as error:
            return error
        raise AssertionError(f"it answered {found}")


def outputs(answer: InferAnswer) -> dict[str, Any]:
    return {output.name: output.array for output in answer.outputs}


def asked_together(
    address: tuple[str, int], model: str, bodies: Sequence[bytes]
) -> list[tuple[int, Any]]:
    """Send all in one piece on one connection; return status and JSON of each."""
    with socket.create_connection(address, SOCKET_WAIT_S) as connection:
        connection.sendall(b"".join(
            b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
            % (model.encode(), len(data), data)
            for data in bodies
        ))  # fmt: skip
        found = []
        with connection.makefile("rb") as file:
            for _ in bodies:
                status = int(file.readline().split()[1])
                headers = http.client.parse_headers(file)
                found.append((status, json.loads(file.read(int(headers["Content-Length"])))))
        return found


def processes_of(served: Served, name: str) -> list[int]:
    """Return the process ids of a Python model's instances."""
    return [instance.pid for instance in served.repository.get(name)._engine._instances]  # type: ignore[attr-defined]
