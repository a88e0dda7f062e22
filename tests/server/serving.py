"""A worker under test: a real process with real bundles, plans, clients and collector."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import lightgbm as lgb
import msgspec
import numpy as np
import onnxruntime

from features import CompiledService
from tests.server.onnx_models import mlp_model
from tests.support.bundles import manifest
from tests.support.rides import DEFINITIONS, SOURCE
from tests.trainer.boosters import FEATURES, rows
from trainer.bundle import (
    Decision,
    FeatureServiceRef,
    Signature,
    TensorSpec,
    write_bundle,
)
from trainer.calibrators import CALIBRATOR, Calibrator, calibrate, calibrator_bytes
from trainer.export import forest_to_onnx
from trainer.golden import golden_bytes
from trainer.trees import read_forest

TIMEOUT_S = 60.0
SERVICE_SCHEMA_ID = 77


def write_version(
    root: Path,
    name: str = "tips",
    seed: int = 1,
    *,
    service: CompiledService | None = None,
    source: bytes = SOURCE,
    model: bytes | None = None,
    golden_shift: float = 0.0,
    **changes: Any,
) -> str:
    """Write a bundle of a model, else a small network, over the service's features; return its
    digest. `source` defines the service."""
    service = service or DEFINITIONS.service("tips")
    width = len(service.columns)
    model = model or mlp_model(width, seed)
    inputs = np.random.default_rng(seed).normal(size=(5, width)).astype(np.float32)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"features": inputs})
    fields: dict[str, Any] = {
        "signature": Signature(
            [TensorSpec("features", "FP32", [-1, width])],
            [TensorSpec("probability", "FP32", [-1, 1])],
        ),
        "feature_service": FeatureServiceRef(
            service.name, service.version, service.hash, service.columns, SERVICE_SCHEMA_ID
        ),
        "decision": Decision(["low", "high"], threshold=0.5),
    }
    return write_bundle(
        root / f"{name}-{seed}",
        manifest(name, **(fields | changes)),
        {
            "model.onnx": model,
            "golden.arrow": golden_bytes(
                {"features": inputs, "probability": outputs + np.float32(golden_shift)}
            ),
            "card.md": b"# card\n",
            "profile.arrow": b"profile",
            "definitions.py": source,
        },
    )


def write_plain_version(root: Path, name: str = "plain", seed: int = 3) -> str:
    """Write a bundle without a feature service: one input `x` [N, 1]."""
    model = mlp_model(1, seed, name="x")
    inputs = np.array([[0.5], [-2.0]], np.float32)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"x": inputs})
    return write_bundle(
        root / f"{name}-{seed}",
        manifest(
            name,
            signature=Signature(
                [TensorSpec("x", "FP32", [-1, 1])], [TensorSpec("probability", "FP32", [-1, 1])]
            ),
            decision=None,
        ),
        {
            "model.onnx": model,
            "golden.arrow": golden_bytes({"x": inputs, "probability": outputs}),
            "card.md": b"# card\n",
            "profile.arrow": b"profile",
        },
    )


def write_tree_version(
    root: Path,
    text: str,
    name: str = "late",
    *,
    calibrator: Calibrator | None = None,
    decision: Decision | None = None,
) -> str:
    """Write a bundle of a LightGBM model text without a feature service: `features` [N, F]."""
    matrix = rows(6, seed=3)
    probability = lgb.Booster(model_str=text).predict(matrix).astype(np.float32)[:, None]
    contents: dict[str, bytes | Path] = {
        "model.onnx": forest_to_onnx(read_forest(text), name).SerializeToString(),
        "card.md": b"# card\n",
        "profile.arrow": b"profile",
    }
    if calibrator is not None:
        assert decision is not None
        decision = msgspec.structs.replace(decision, calibrator=CALIBRATOR)
        contents[CALIBRATOR] = calibrator_bytes(calibrator)
        probability = calibrate(calibrator, probability)
    contents["golden.arrow"] = golden_bytes({"features": matrix, "probability": probability})
    signature = Signature(
        [TensorSpec("features", "FP32", [-1, FEATURES])],
        [TensorSpec("probability", "FP32", [-1, 1])],
    )
    described = manifest(name, signature=signature, decision=decision)
    return write_bundle(root / name, described, contents)


def plan(number: int, **models: list[tuple[str, str, float]] | dict[str, Any]) -> dict[str, Any]:
    """A plan from model=[(version, role, weight), …], or a model's whole plan as a dict."""
    return {
        "plan": number,
        "models": {
            name: arms
            if isinstance(arms, dict)
            else {
                "policy": {"kind": "weighted" if len(arms) > 1 else "single", "salt": "s"},
                "arms": [
                    {"arm": "abcdef"[place], "version": version, "role": role, "weight": weight}
                    for place, (version, role, weight) in enumerate(arms)
                ],
            }
            for name, arms in models.items()
        },
    }


class Process:
    """A child of the tests: lines of stdout as JSON, stderr as text. Use in a `with` block."""

    def __init__(self, module: str, config: dict[str, Any]) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(config)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean,
        )  # fmt: skip
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.errors: list[str] = []
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._read_out, self._read_err)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def event(self, kind: str) -> dict[str, Any]:
        """Return the next event of this kind; fails with the process's stderr at its end."""
        while True:
            line = self._lines.get(timeout=TIMEOUT_S)
            assert line is not None, f"it ended: {self.errors}"
            if line["event"] == kind:
                return line

    def send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)

    def _read_out(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    def _read_err(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors.append(line.decode())


def start_worker(data_dir: Path, **config: Any) -> Process:
    """Start a worker on free ports; wait for its event `ready`."""
    defaults = {
        "worker": 3, "host": "127.0.0.1", "grpc_port": 0, "http_port": 0, "metrics_port": 0,
        "data_dir": str(data_dir), "drain_s": 5.0,
    }  # fmt: skip
    return Process("server.worker", defaults | config)


def unary(
    channel: grpc.Channel, path: str, request: Any, reply: Any, timeout_s: float = TIMEOUT_S
) -> Any:
    """Return the `reply` (its type) of a unary method to a message."""
    method = channel.unary_unary(
        path,
        request_serializer=type(request).SerializeToString,
        response_deserializer=reply.FromString,
    )
    return method(request, timeout=timeout_s)


def start_collector(data_dir: Path) -> tuple[Process, str]:
    """Start a collector; return it and its socket. `data_dir` is short: a socket's path is."""
    run = data_dir / "run"
    run.mkdir(parents=True, exist_ok=True)
    socket = str(run / "collector.sock")
    process = Process("server.collector", {"data_dir": str(data_dir), "socket": socket})
    process.event("ready")
    return process, socket
