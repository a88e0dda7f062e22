"""The peer on grpc.aio and uvloop: ModelInfer in the most direct way.

`python -m benchmarks.common.aio_peer ONNX_FILE…` prints its port once it serves. A file lies in a
repository: NAME/VERSION/model.onnx.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from grpc import aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

from benchmarks.common import model


class Service(pb_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Runs the models in the event loop: a hop to a thread would cost more than the run."""

    def __init__(self, onnx_files: Sequence[Path]) -> None:
        self._sessions = {file.parents[1].name: model.session(file) for file in onnx_files}

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        source = request.inputs[0]
        row = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(source.shape)
        (answer,) = self._sessions[request.model_name].run([model.OUTPUT], {model.INPUT: row})
        name = request.model_name
        reply = pb.ModelInferResponse(model_name=name, model_version="1", id=request.id)
        reply.outputs.add(name=model.OUTPUT, datatype="FP32", shape=answer.shape)
        reply.raw_output_contents.append(answer.tobytes())
        return reply


async def serve(onnx_files: Sequence[Path]) -> None:
    """Serve until the process is ended."""
    server = aio.server()
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(Service(onnx_files), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(serve([Path(name) for name in sys.argv[1:]]))
