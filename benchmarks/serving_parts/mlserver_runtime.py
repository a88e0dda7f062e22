"""A model as MLServer runs it: a custom runtime, the rows of a request in one run of onnxruntime.

This file is copied beside MLServer's model settings and runs inside MLServer: it imports nothing of
ours.
"""

from typing import Any

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Onnx(MLModel):  # type: ignore[misc]
    """What MLServer's model settings name."""

    async def load(self) -> bool:
        """Load the file that the settings name."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session: Any = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer one request, or those that MLServer has batched into one."""
        rows = NumpyCodec.decode_input(payload.inputs[0])
        (answers,) = self._session.run(["probability"], {"features": rows})
        return InferenceResponse(
            model_name=self.name,
            model_version=self.version,
            outputs=[NumpyCodec.encode_output("probability", answers)],
        )
