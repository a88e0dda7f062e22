"""Forests with larger trees than `small_trees` draws, and onnxruntime's answers to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto

from tests.server.explain.small_trees import (
    FEATURES,
    MODES,
    Leaf,
    Split,
    Tree,
    attributes_of,
    model_of,
    regressor,
)

# Few thresholds, so that rows lie on them and beside them; float32 all.
LIMITS = (-3e38, -1.5, -1.0, -1e-40, -0.0, 0.0, 0.5, 1.0, 2.0, math.inf, -math.inf, math.nan)


def forest(
    seed: int, leaves: Sequence[int], outputs: Sequence[int] = (0,), modes: Sequence[str] = MODES,
    *, positive: bool = False,
) -> list[Tree]:  # fmt: skip
    """Trees of so many leaves each, every leaf with a weight for each of `outputs`."""
    random = np.random.default_rng(seed)

    def grow(count: int) -> Tree:
        if count == 1:
            weights = random.normal(size=len(outputs)).astype(np.float32)
            weights = np.abs(weights) if positive else weights
            return Leaf(dict(zip(outputs, weights.tolist(), strict=True)), 1)
        left = int(random.integers(1, count))
        return Split(
            int(random.integers(FEATURES)),
            float(np.float32(random.choice(LIMITS) if random.random() < 0.5 else random.normal())),
            str(random.choice(modes)),
            bool(random.integers(2)),
            grow(left),
            grow(count - left),
        )

    return [grow(count) for count in leaves]


def rows(seed: int, count: int, width: int = FEATURES) -> NDArray[np.float32]:
    """Rows of numbers, of the thresholds, and of what is no number."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(count, width)).astype(np.float32)
    chosen = random.choice(np.array([*LIMITS, 1e-40, 3e38], np.float32), values.shape)
    return np.where(random.random(values.shape) < 0.5, chosen, values)


def classifier(trees: Sequence[Tree], labels: Sequence[int] | Sequence[str], **more: Any) -> bytes:
    """The ONNX file of a classifier, whose outputs are `label` and `scores`."""
    texts = isinstance(labels[0], str)
    attributes = attributes_of(trees, "class") | {
        "classlabels_strings" if texts else "classlabels_int64s": labels
    }
    around = more.pop("around", lambda node: [node])
    file = model_of(
        attributes | more, "TreeEnsembleClassifier", outputs=("label", "scores"), around=around
    )
    if not texts:
        return file
    model = onnx.load_from_string(file)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    return bytes(model.SerializeToString())


def session_of(model: bytes) -> Any:
    """An onnxruntime session of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def answers(session: Any, matrix: NDArray[np.float32]) -> list[Any]:
    """What onnxruntime answers."""
    result: list[Any] = session.run(None, {session.get_inputs()[0].name: matrix})
    return result


def same(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Whether all outputs have the same bits."""
    return len(found) == len(expected) and all(
        one.shape == other.shape
        and one.dtype == other.dtype
        and (one.tolist() if one.dtype == object else one.tobytes())
        == (other.tolist() if other.dtype == object else other.tobytes())
        for one, other in zip(found, expected, strict=True)
    )


__all__ = ["answers", "classifier", "forest", "regressor", "rows", "same", "session_of"]
