"""A worker that holds sequences is killed, or drained: who had one hears of it and starts again."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.server import sequence_models as models
from tests.server.onnx_models import put
from tests.server.processes.running import eventually
from tests.server.test_serve import FREE_PORTS, children, ready, serve

pytestmark = pytest.mark.slow


def test_a_killed_worker_takes_its_sequences_with_it(tmp_path: Path) -> None:
    config = models.batching("max_sequence_idle_microseconds: 60000000\n" + models.state())
    put(tmp_path / "models", "m", models.folding(), config=config + models.tensors("TYPE_INT64"))
    data = tmp_path / "data"
    arguments = ("--model-repository", str(tmp_path / "models"), "--data-dir", str(data))
    with serve(*arguments, *FREE_PORTS) as process:
        client = triton.InferenceServerClient(ready(process)["grpc"])
        tensor = triton.InferInput("INPUT", [1, 1], "INT64")
        tensor.set_data_from_numpy(np.array([[1]], np.int64))

        def ask(**flags: bool) -> Any:
            answer = client.infer("m", [tensor], sequence_id="killed", **flags)
            return int(answer.as_numpy("OUTPUT")[0, 0])

        assert ask(sequence_start=True) == 1
        assert ask() == 4
        os.kill(children(data)["worker-0"], signal.SIGKILL)
        said: list[str] = []

        def refused() -> bool:
            try:
                said.append(f"answered {ask()}")
            except InferenceServerException as error:
                said.append(error.message())
            return "must specify the START flag" in said[-1]

        eventually(refused, "a new worker says that it has no such sequence")
        assert not any(text.startswith("answered") for text in said)
        assert ask(sequence_start=True) == 1
        assert ask() == 4  # it is open while the server drains
        client.close()
        assert process.end() == 0
