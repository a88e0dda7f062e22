"""Our worker, and the models that it serves: one over each service."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import model, servers
from benchmarks.common.processes import Process
from benchmarks.common.servers import HOST, Ports, Server
from benchmarks.features_parts import facts, world
from features import definitions_from_source

MODEL = "scored"  # a network over the features of the narrow service
HIDDEN = 64


def network() -> bytes:
    """Return the model: FLOAT [N, 50] → ReLU(64) → sigmoid [N, 1]."""
    width = facts.WIDTHS[0]
    random = np.random.default_rng(facts.SEED)
    weights = {
        "w1": random.normal(scale=width**-1.5, size=(width, HIDDEN)),
        "w2": random.normal(scale=HIDDEN**-0.5, size=(HIDDEN, 1)),
    }
    nodes = [
        ("MatMul", [model.INPUT, "w1"], "hidden"),
        ("Relu", ["hidden"], "active"),
        ("MatMul", ["active", "w2"], "logit"),
        ("Sigmoid", ["logit"], model.OUTPUT),
    ]
    return model.graph_bytes(MODEL, nodes, weights, (model.INPUT, width), (model.OUTPUT, 1))


def scored(onnx: bytes, rows: Any) -> Any:
    """Return what onnxruntime makes of rows of features, float32 [rows, 1]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    return session.run([model.OUTPUT], {model.INPUT: rows.astype(np.float32)})[0]


def _write_version(root: Path, width: int) -> tuple[str, str]:
    """Write a version over the features of one service; return its model's name and its digest."""
    from trainer import bundle
    from trainer.golden import golden_bytes

    narrow = width == facts.WIDTHS[0]
    service = definitions_from_source(world.source()).service(facts.service_of(width))
    onnx = network() if narrow else _sum(width)
    rows = facts.values_of(width)[:4].astype(np.float32)
    name = MODEL if narrow else f"{MODEL}_{width}"
    manifest = bundle.Manifest(
        name=name,
        signature=bundle.Signature(
            [bundle.TensorSpec(model.INPUT, "FP32", [-1, width])],
            [bundle.TensorSpec(model.OUTPUT, "FP32", [-1, 1])],
        ),
        feature_service=bundle.FeatureServiceRef(
            service.name, service.version, service.hash, service.columns, 100 + width
        ),
        decision=None,
        runtime=bundle.Runtime({"ai.onnx": 21}, ">=1.20,<2"),
        golden=bundle.Golden(),
        metrics={},
        lineage=bundle.Lineage(
            run="benchmark", datasets={}, code_commit="none", code_dirty_digest=None, parameters={},
            environment_digest="sha256:" + "0" * 64,
        ),
    )  # fmt: skip
    golden = {model.INPUT: rows, model.OUTPUT: scored(onnx, rows)}
    contents: dict[str, bytes | Path] = {
        "model.onnx": onnx, "golden.arrow": golden_bytes(golden), "card.md": b"# benchmark\n",
        "profile.arrow": b"profile", "definitions.py": world.source(),
    }  # fmt: skip
    return name, bundle.write_bundle(root / name, manifest, contents)


def _sum(width: int) -> bytes:
    """Return a model that is only there for its service: the sum of the features."""
    nodes = [("MatMul", [model.INPUT, "ones"], model.OUTPUT)]
    ends = (model.INPUT, width), (model.OUTPUT, 1)
    return model.graph_bytes("sum", nodes, {"ones": np.full((width, 1), 1e-3)}, *ends)


def plan(versions: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return the release plan under which each model has its one version live."""
    return {
        "plan": 1,
        "models": {
            name: {
                "policy": {"kind": "single", "salt": "s"},
                "arms": [{"arm": "a", "version": digest, "role": "live", "weight": 1.0}],
            }
            for name, digest in versions
        },
    }


def worker(folder: Path, url: str, cpu: int) -> Server:
    """Return a worker of ours over the store; what it releases is what has the services."""
    bundles = folder / "bundles"
    config = {
        "worker": 0, "host": HOST, "grpc_port": 0, "http_port": 0, "metrics_port": 0,
        "data_dir": str(folder / "data"), "registry": f"file://{bundles}", "redis": url,
        "plan": plan([_write_version(bundles, width) for width in facts.WIDTHS]),
    }  # fmt: skip

    def launch() -> tuple[Process, Ports]:
        process = Process([sys.executable, "-m", "server.worker", json.dumps(config)], [cpu])
        ready = process.wait_for(lambda: servers.ready_line(process.output()))
        return process, Ports(servers.port_of(ready["grpc"]), servers.port_of(ready["http"]))

    return Server(servers.OURS, launch)
