"""The ONNX model as a function, as the server will run it."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

# Before onnxruntime loads: its Linux wheels report home otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from trainer.export import INPUT, OUTPUT

_CHUNK_ROWS = 32_768


def onnx_predictor(
    model: bytes, threads: int
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return the function that the model is: float32 [N, F] → probability float32 [N]."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def predict(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
        parts = [
            session.run([OUTPUT], {INPUT: matrix[at : at + _CHUNK_ROWS]})[0][:, 0]
            for at in range(0, max(len(matrix), 1), _CHUNK_ROWS)
        ]
        return np.concatenate(parts)

    return predict
