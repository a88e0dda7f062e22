"""The ensembles that are served: a scaler, a model of the A rows, and a calibration.

    features → scaled → probability → calibrated

The scaler and the calibration are small graphs: what an ensemble costs is what lies between steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.common import model
from benchmarks.common.servers import TritonModel, our_config, triton_config
from benchmarks.serving_parts import workloads

CALIBRATION, CALIBRATED, SCALED = "calibration", "calibrated", "scaled"
ROWS_MAX = 256
MIDDLES = {model.MODEL: model.WIDTH, workloads.GBDT: workloads.GBDT_WIDTH}


def ensemble_of(middle: str) -> str:
    """Return the ensemble's name."""
    return f"{middle}_chain"


def write_steps(root: Path, files: Mapping[str, Path]) -> dict[str, list[Path]]:
    """Write the ensembles into our repository, which has the models of the A rows in `files`;
    return the ONNX files of each ensemble, in order.
    """
    for each in triton_models(root):
        file = root / each.name / "config.pbtxt"
        file.parent.mkdir(parents=True)
        file.write_text(our_config(each.config))
        (file.parent / "1").mkdir()
    calibration = _file(root, CALIBRATION)
    calibration.write_bytes(calibration_onnx())
    for middle, width in MIDDLES.items():
        _file(root, _scaler_of(middle)).write_bytes(scaler_onnx(width))
    return {
        ensemble_of(middle): [_file(root, _scaler_of(middle)), files[middle], calibration]
        for middle in MIDDLES
    }


def triton_models(root: Path) -> list[TritonModel]:
    """Return the scalers, the calibration and the ensembles, whose files are in our repository."""
    calibration = triton_config(1, ROWS_MAX, model.OUTPUT, CALIBRATED)
    models = [TritonModel(CALIBRATION, _file(root, CALIBRATION), calibration)]
    for middle, width in MIDDLES.items():
        scaler = _scaler_of(middle)
        config = triton_config(width, ROWS_MAX, model.INPUT, SCALED, width)
        models.append(TritonModel(scaler, _file(root, scaler), config))
        models.append(TritonModel(ensemble_of(middle), None, _ensemble_config(middle, width)))
    return models


def _scaler_of(middle: str) -> str:
    return f"{middle}_scaler"


def _file(root: Path, name: str) -> Path:
    return root / name / "1" / "model.onnx"


def _ensemble_config(middle: str, width: int) -> str:
    steps = [
        _step(_scaler_of(middle), (model.INPUT, model.INPUT), (SCALED, SCALED)),
        _step(middle, (model.INPUT, SCALED), (model.OUTPUT, model.OUTPUT)),
        _step(CALIBRATION, (model.OUTPUT, model.OUTPUT), (CALIBRATED, CALIBRATED)),
    ]
    return f"""
platform: "ensemble"
max_batch_size: {ROWS_MAX}
input {{ name: "{model.INPUT}" data_type: TYPE_FP32 dims: [ {width} ] }}
output {{ name: "{CALIBRATED}" data_type: TYPE_FP32 dims: [ 1 ] }}
ensemble_scheduling {{
{"".join(steps)}}}
"""


def _step(name: str, source: tuple[str, str], target: tuple[str, str]) -> str:
    return f"""  step {{
    model_name: "{name}" model_version: -1
    input_map {{ key: "{source[0]}" value: "{source[1]}" }}
    output_map {{ key: "{target[0]}" value: "{target[1]}" }}
  }}
"""


# The graphs


def scaler_onnx(width: int) -> bytes:
    """Return (features - mean) / scale: FLOAT [N, width] → [N, width]."""
    random = np.random.default_rng(workloads.SEED)
    weights = {"mean": random.normal(size=width) / 10, "scale": random.uniform(0.8, 1.2, width)}
    nodes = [("Sub", [model.INPUT, "mean"], "centred"), ("Div", ["centred", "scale"], SCALED)]
    return model.graph_bytes(SCALED, nodes, weights, (model.INPUT, width), (SCALED, width))


def calibration_onnx() -> bytes:
    """Return Platt's scaling of a probability's log odds: FLOAT [N, 1] → [N, 1]."""
    nodes = [
        ("Sub", ["one", model.OUTPUT], "rest"),
        ("Div", [model.OUTPUT, "rest"], "odds"),
        ("Log", ["odds"], "logit"),
        ("Mul", ["logit", "slope"], "steeper"),
        ("Add", ["steeper", "shift"], "shifted"),
        ("Sigmoid", ["shifted"], CALIBRATED),
    ]
    weights = {"one": np.ones(1), "slope": np.full(1, 0.9), "shift": np.full(1, -0.1)}
    return model.graph_bytes(CALIBRATED, nodes, weights, (model.OUTPUT, 1), (CALIBRATED, 1))
