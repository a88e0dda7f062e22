"""The wire: our gRPC and REST data plane against grpc.aio, NVIDIA Triton and uvicorn + FastAPI.

Every server has one core and the same model, a 30→64→1 network with one row a call; the load comes
from other cores; ours and its peers run in turns. Triton is the tritonserver 2.51 of the package
nvidia-pytriton, whose Python backend runs the same ONNX file through onnxruntime with dynamic
batching. Triton with its C++ ONNX backend is not on any package index and is measured elsewhere.

parts: grpc (h2load), headers (that vary per call), rest (HTTP/1.1), latency (open loop), memory,
workers (two against one), balance (few connections on several workers), inprocess (no sockets).
"""

from __future__ import annotations

import sys

from benchmarks.common import program
from benchmarks.wire_parts import (
    balance_part,
    grpc_part,
    headers_part,
    inprocess_part,
    latency_part,
    memory_part,
    rest_part,
    workers_part,
)
from benchmarks.wire_parts.bench import Bench, prepared

PARTS: program.Parts[Bench] = {
    "grpc": grpc_part.measure,
    "headers": headers_part.measure,
    "rest": rest_part.measure,
    "latency": latency_part.measure,
    "memory": memory_part.measure,
    "workers": workers_part.measure,
    "balance": balance_part.measure,
    "inprocess": inprocess_part.measure,
}
PACKAGES = ("grpcio", "onnxruntime", "uvloop", "httptools", "msgspec")

if __name__ == "__main__":
    sys.exit(program.run("wire", __doc__, PARTS, PACKAGES, prepared))
