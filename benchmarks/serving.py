"""The whole server: models, latency under load and overload against Triton, grpc.aio, MLServer
and BentoML.

Every server has one core; the load comes from another one; ours and its peers run in turns, and
every answer over gRPC is held against onnxruntime's. The models are the small network of the wire
and 200 trees of 31 leaves over 50 features with 1, 32 and 256 rows a call. Triton is the
tritonserver 2.51 of the package nvidia-pytriton, whose Python backend runs the same ONNX file
through onnxruntime with dynamic batching. BentoML speaks REST, and is compared with our REST.

parts: closed (throughput), rest (JSON), open (latency on a schedule), overload (goodput at three
times the peak), ensemble (of three steps), minilm (against bare onnxruntime), gpu (against
onnxruntime with IO binding; skipped where there is no GPU). The attributions of trees are measured
by `python -m benchmarks.tree_shap`.
"""

from __future__ import annotations

import sys

from benchmarks.common import program
from benchmarks.serving_parts import (
    closed_part,
    ensemble_part,
    gpu_part,
    minilm_part,
    open_part,
    overload_part,
    rest_part,
)
from benchmarks.serving_parts.bench import Bench, prepared

PARTS: program.Parts[Bench] = {
    "closed": closed_part.measure,
    "rest": rest_part.measure,
    "open": open_part.measure,
    "overload": overload_part.measure,
    "ensemble": ensemble_part.measure,
    "minilm": minilm_part.measure,
    "gpu": gpu_part.measure,
}
PACKAGES = ("grpcio", "onnxruntime", "lightgbm", "uvloop", "httptools", "msgspec")

if __name__ == "__main__":
    sys.exit(program.run("serving", __doc__, PARTS, PACKAGES, prepared))
