"""The wire: our gRPC and REST data plane against grpc.aio, NVIDIA Triton and uvicorn + FastAPI.

Every server has one core and the same model, a 30→64→1 network with one row a call; the load comes
from other cores; ours and its peers run in turns. Triton is the tritonserver 2.51 of the package
nvidia-pytriton, whose Python backend runs the same ONNX file through onnxruntime with dynamic
batching. Triton with its C++ ONNX backend is not on any package index and is measured elsewhere.

parts: grpc (h2load), headers (that vary per call), rest (HTTP/1.1), latency (open loop), memory,
workers (two against one), balance (few connections on several workers), inprocess (no sockets).
"""

from __future__ import annotations

import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import Figure
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
from benchmarks.wire_parts.bench import FULL, QUICK, Bench, prepared
from benchmarks.wire_parts.processes import StartError, cores
from benchmarks.wire_parts.tools import InvalidRun, missing_tools

PARTS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "grpc": grpc_part.measure,
    "headers": headers_part.measure,
    "rest": rest_part.measure,
    "latency": latency_part.measure,
    "memory": memory_part.measure,
    "workers": workers_part.measure,
    "balance": balance_part.measure,
    "inprocess": inprocess_part.measure,
}
IDLE_LOAD_MAX = 0.5
PACKAGES = ("grpcio", "onnxruntime", "uvloop", "httptools", "msgspec")


def measure(bench: Bench, parts: list[str]) -> tuple[list[Figure], bool]:
    """Run the parts; return their figures, and whether every run of ours was valid."""
    figures: list[Figure] = []
    valid = True
    for part in (name for name in PARTS if name in parts):
        start_s = time.monotonic()
        try:
            figures += PARTS[part](bench)
        except (InvalidRun, OSError) as error:
            valid = False
            bench.note(f"{part} is invalid and cut short: {error}")
            bench.ours().restart()
        print(f"{part}: {time.monotonic() - start_s:.0f} s", file=sys.stderr)
    return figures, valid


def main() -> int:
    """Run the benchmark; 1 when it cannot run, or when calls to ours failed."""
    options = harness.arguments(__doc__, tuple(PARTS))
    if missing := missing_tools():
        print("\n".join(missing), file=sys.stderr)
        return 1
    # An exit like any other: whoever ends us by SIGTERM ends the servers with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # Ten thousand connections are as many open files, on both sides.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    machine = harness.machine()
    with (
        tempfile.TemporaryDirectory() as folder,
        prepared(QUICK if options.quick else FULL, cores(), Path(folder)) as bench,
    ):
        if machine["load_1m"] > IDLE_LOAD_MAX:
            bench.note(f"something else runs on this machine (load {machine['load_1m']})")
        figures, valid = measure(bench, options.only)
    document = harness.document(
        "wire",
        machine,
        harness.versions(PACKAGES, list(bench.pythons.items())),
        figures,
        bench.notes,
    )
    harness.publish(document, figures, options.json)
    return 0 if valid else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StartError as error:
        sys.exit(f"error: {error}")
