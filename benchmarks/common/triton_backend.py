"""The model as Triton's Python backend runs it: the rows of a batch in one run of onnxruntime.

This file is copied into Triton's repository and runs inside Triton: it imports nothing of ours.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """What Triton calls by name."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model that lies beside this file."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        file = Path(args["model_repository"], args["model_version"], "model.onnx")
        self._session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests of one dynamic batch."""
        rows = [pb_utils.get_input_tensor_by_name(r, self._input).as_numpy() for r in requests]
        batch = rows[0] if len(rows) == 1 else np.concatenate(rows)
        (answers,) = self._session.run([self._output], {self._input: batch})
        responses, start = [], 0
        for part in rows:
            end = start + len(part)
            tensor = pb_utils.Tensor(self._output, answers[start:end])
            responses.append(pb_utils.InferenceResponse([tensor]))
            start = end
        return responses
