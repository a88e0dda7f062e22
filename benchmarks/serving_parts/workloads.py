"""What the servers of the serving benchmark serve, and what is sent to them.

Every model takes `features` and answers `probability`, as the small network of the wire does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import frames, model
from benchmarks.common.servers import TritonModel, our_config, triton_config

GBDT, WIDE = "gbdt", "wide"
GBDT_WIDTH, TREES, LEAVES, TRAINING_ROWS = 50, 200, 31, 20_000
# The network that is overloaded: about 2.5 ms for a batch of the largest size.
WIDE_HIDDEN = (2560, 2560, 2560)
ROWS_MAX = {model.MODEL: 256, GBDT: 256, WIDE: 8}  # of a batch, where the server joins requests
SEED = 11

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Workload:
    """Requests of one shape to one model: `bodies` in turns, each with its answer.

    `answers` float32 [bodies, rows] is what onnxruntime says, in a file for the load client.
    """

    title: str
    model: str
    rows: int
    bodies: Sequence[bytes]  # of gRPC calls
    answers: Path
    first: Rows  # the rows of the first body
    calls_max: int  # of a script: more than a connection can have answered in a second

    def script(self, folder: Path, timeout_ms: int | None) -> list[Path]:
        """Write the calls of a connection to `folder`; return the file."""
        file = folder / f"{self.title.replace(' ', '-')}-{timeout_ms}.script"
        frames.write_script(file, frames.constant_blocks(self.calls_max, timeout_ms), self.bodies)
        return [file]

    @property
    def body_bytes(self) -> int:
        """The length of every body."""
        return len(self.bodies[0])

    def wanted(self) -> Rows:
        """Return the answers, float32 [bodies, rows]."""
        answers: Rows = np.load(self.answers)
        return answers


def gbdt_onnx() -> bytes:
    """Return 200 trees of 31 leaves over 50 features, trained on made data."""
    import lightgbm

    from trainer.export import forest_to_onnx
    from trainer.trees import read_forest, to_single_precision

    random = np.random.default_rng(SEED)
    matrix = rows_of(GBDT_WIDTH, TRAINING_ROWS, SEED)
    score = matrix @ random.normal(size=GBDT_WIDTH) + 3 * matrix[:, 0] * matrix[:, 1]
    labels = score + random.normal(size=TRAINING_ROWS) > 0
    settings = {
        "objective": "binary", "num_leaves": LEAVES, "num_threads": 1, "deterministic": True,
        "force_row_wise": True, "seed": SEED, "verbose": -1,
    }  # fmt: skip
    booster = lightgbm.train(settings, lightgbm.Dataset(matrix, labels), TREES)
    text = to_single_precision(booster.model_to_string())
    return bytes(forest_to_onnx(read_forest(text), GBDT).SerializeToString())


def wide_onnx() -> bytes:
    """Return a network whose run costs far more than a call: 30→2560→2560→2560→1."""
    random = np.random.default_rng(SEED)
    sizes = (model.WIDTH, *WIDE_HIDDEN, 1)
    nodes, weights, source = [], {}, model.INPUT
    for layer, (wide, next_wide) in enumerate(pairwise(sizes)):
        weights[f"w{layer}"] = random.normal(scale=(2 / wide) ** 0.5, size=(wide, next_wide))
        last = layer == len(WIDE_HIDDEN)
        activated = model.OUTPUT if last else f"a{layer}"
        nodes.append(("MatMul", [source, f"w{layer}"], f"h{layer}"))
        nodes.append(("Sigmoid" if last else "Relu", [f"h{layer}"], activated))
        source = activated
    return model.graph_bytes(WIDE, nodes, weights, (model.INPUT, model.WIDTH), (model.OUTPUT, 1))


def rows_of(width: int, count: int, seed: int) -> Rows:
    """Return normal rows, float32 [count, width]."""
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


# The repositories


def write_repository(root: Path) -> dict[str, Path]:
    """Write our repository, whose config.pbtxt is Triton's but for the backend; return the ONNX
    files by model.
    """
    files = {model.MODEL: model.write_repository(root)}
    for name, content in ((GBDT, gbdt_onnx()), (WIDE, wide_onnx())):
        files[name] = root / name / "1" / "model.onnx"
        files[name].parent.mkdir(parents=True)
        files[name].write_bytes(content)
    for name, file in files.items():
        config = our_config(triton_config(_width(name), ROWS_MAX[name]))
        (file.parents[1] / "config.pbtxt").write_text(config)
    return files


def triton_models(files: dict[str, Path]) -> list[TritonModel]:
    """Return the models for Triton.

    None has a `default_queue_policy`, which its users would set against overload: with one, even
    with `max_queue_size` alone, this Triton on one core answers six calls a second of one caller
    and leaves the core idle. What waits too long is ended by its caller's deadline, as in ours.
    """
    return [
        TritonModel(name, file, triton_config(_width(name), ROWS_MAX[name]))
        for name, file in files.items()
    ]


def _width(name: str) -> int:
    return GBDT_WIDTH if name == GBDT else model.WIDTH


# The requests


def write_workload(
    chain: Sequence[Path],
    folder: Path,
    title: str,
    name: str,
    shape: tuple[int, int],
    calls_max: int,
) -> Workload:
    """Make requests of `shape` (different bodies, rows of each) and their answers.

    They are to the model `name`, which answers as the files of `chain` do, one after another: each
    takes and makes one tensor.
    """
    bodies, rows = shape
    sessions = [model.session(file) for file in chain]
    width = sessions[0].get_inputs()[0].shape[1]
    batches = rows_of(width, bodies * rows, SEED + rows).reshape(bodies, rows, -1)
    answers = [_answer(sessions, batch).ravel() for batch in batches]
    file = folder / f"{name}-{rows}.npy"
    np.save(file, np.array(answers, np.float32))
    return Workload(
        title,
        name,
        rows,
        [model.grpc_body(batch, name) for batch in batches],
        file,
        batches[0],
        calls_max,
    )


def _answer(sessions: Sequence[Any], rows: Rows) -> Rows:
    for session in sessions:
        (rows,) = session.run(None, {session.get_inputs()[0].name: rows})
    return rows


def bento_body(workload: Workload) -> bytes:
    """Return the first body as BentoML takes it."""
    return json.dumps({"rows": workload.first.tolist()}).encode()


def answers_of(content: bytes) -> list[float]:
    """Return the values of a JSON reply, of the Open Inference Protocol or of BentoML."""
    document: Any = json.loads(content)
    values = document["outputs"][0]["data"] if isinstance(document, dict) else document
    return [float(value) for value in np.ravel(values)]
