"""What an outsider would try on the running system: Triton's own clients, and a replay by id."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from headrace.errors import InternalError
from server.demo.system import System

_REPLAY_TIMEOUT_S = 120.0
_INPUT, _OUTPUT = "features", "probability"


def infer_with_triton(system: System, model: str, row: np.ndarray) -> dict[str, float | None]:
    """Send one row (float32 [1, F]) with each of Triton's clients; None: it is not installed."""
    answers: dict[str, float | None] = {}
    for name, address in (("grpc", system.grpc), ("http", system.http)):
        try:
            triton = _module(name)
        except ImportError:
            answers[name] = None
            continue
        answers[name] = _infer(triton, address, model, row)
    return answers


def _module(name: str) -> Any:
    if name == "grpc":
        from tritonclient import grpc as triton
    else:
        from tritonclient import http as triton
    return triton


def _infer(triton: Any, address: str, model: str, row: np.ndarray) -> float:
    client = triton.InferenceServerClient(address)
    try:
        tensor = triton.InferInput(_INPUT, list(row.shape), "FP32")
        tensor.set_data_from_numpy(row)
        wanted = [triton.InferRequestedOutput(_OUTPUT)]
        reply = client.infer(model, [tensor], outputs=wanted)
        output = reply.as_numpy(_OUTPUT)
    except triton.InferenceServerException as error:
        raise InternalError(f"{triton.__name__} cannot infer: {error}") from None
    finally:
        client.close()
    return float(output.reshape(-1)[0])


def replay_prediction(system: System, data_dir: Path, prediction_id: str) -> tuple[int, str]:
    """Run `headrace replay` on a logged prediction; return its exit code and its last line."""
    command = [sys.executable, "-m", "server.cli.main", "replay", prediction_id]
    command += ["--data-dir", str(data_dir), "--control-url", system.control]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_REPLAY_TIMEOUT_S, check=False
    )
    lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).splitlines()
    words = [line.strip() for line in lines if line.strip()]
    return done.returncode, words[-1] if words else "no words"
