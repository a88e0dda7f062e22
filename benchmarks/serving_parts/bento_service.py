"""Models as BentoML serves them: an API for each, whose calls are batched adaptively.

This file runs inside BentoML, in the peer's own environment: `bentoml serve` imports it. The files
of the models come by the environment, as JSON: {"NAME": "FILE"}.
"""

import json
import os
from typing import Any

import bentoml
import numpy as np
import onnxruntime

ROWS_MAX = 256


def _session(name: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    file = json.loads(os.environ["BENCHMARK_MODELS"])[name]
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class Models:
    """Runs both small models."""

    def __init__(self) -> None:
        self._sessions = {name: _session(name) for name in ("mlp", "gbdt")}

    @bentoml.api(batchable=True, max_batch_size=ROWS_MAX, max_latency_ms=1000)
    async def mlp(self, rows: np.ndarray) -> np.ndarray:
        """Answer the rows of one batch."""
        return self._run("mlp", rows)

    @bentoml.api(batchable=True, max_batch_size=ROWS_MAX, max_latency_ms=1000)
    def gbdt(self, rows: np.ndarray) -> np.ndarray:
        """Answer the rows of one batch."""
        return self._run("gbdt", rows)

    def _run(self, name: str, rows: np.ndarray) -> np.ndarray:
        feeds = {"features": rows.astype(np.float32)}
        (answers,) = self._sessions[name].run(["probability"], feeds)
        return answers
