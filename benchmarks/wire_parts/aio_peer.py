"""The peer on grpc.aio and uvloop: ModelInfer in the most direct way, for one model.

`python -m benchmarks.wire_parts.aio_peer ONNX_FILE` prints its port once it serves.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import numpy as np
import uvloop
from grpc import aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

from benchmarks.wire_parts import model


class Service(pb_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Runs the model in the event loop: a hop to a thread would cost more than the run."""

    def __init__(self, onnx_file: str) -> None:
        self._session = model.session(onnx_file)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        source = request.inputs[0]
        row = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(source.shape)
        (answer,) = self._session.run([model.OUTPUT], {model.INPUT: row})
        reply = pb.ModelInferResponse(model_name=model.MODEL, model_version="1", id=request.id)
        reply.outputs.add(name=model.OUTPUT, datatype="FP32", shape=answer.shape)
        reply.raw_output_contents.append(answer.tobytes())
        return reply


async def serve(onnx_file: str) -> None:
    """Serve until the process is ended."""
    server = aio.server()
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(Service(onnx_file), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(serve(sys.argv[1]))
