"""Which backend a model wants: by its configuration, else by the files that it has.

Other distributions add backends by entry points of the group `headrace.backends`. Nothing is
imported until a model wants it.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any

from headrace.errors import FailedPreconditionError
from server.backends.contract import Backend, ModelConfig, VersionFiles

GROUP = "headrace.backends"
ONNXRUNTIME, PYTHON, ENSEMBLE = "onnxruntime", "python", "ensemble"
LIGHTGBM, XGBOOST, SKLEARN = "lightgbm", "xgboost", "sklearn"
REMOTE = "remote"
# Ours are found without metadata, so that a checkout serves without being installed.
_OURS = {
    ONNXRUNTIME: "server.backends.onnx:OnnxBackend",
    ENSEMBLE: "server.backends.ensemble:EnsembleBackend",
    PYTHON: "server.backends.python.backend:PythonBackend",
    LIGHTGBM: "server.backends.forests.backend:LightgbmBackend",
    XGBOOST: "server.backends.forests.backend:XgboostBackend",
    SKLEARN: "server.backends.sklearn.backend:SklearnBackend",
    REMOTE: "server.backends.remote.backend:RemoteBackend",
}
_PLATFORMS = {"onnxruntime_onnx": ONNXRUNTIME, "ensemble": ENSEMBLE}
# In this order a model that names none is looked at.
_BY_FILE = (
    ("model.onnx", ONNXRUNTIME),
    ("model.py", PYTHON),
    ("model.txt", LIGHTGBM),
    ("model.json", XGBOOST),
    ("model.ubj", XGBOOST),
    ("model.skops", SKLEARN),
    ("model.pkl", SKLEARN),
    ("model.joblib", SKLEARN),
)


def backend_name(files: VersionFiles, number: int, config: ModelConfig | None) -> str:
    """Return the name of the backend that a version wants."""
    if config is not None:
        if config.backend:
            return str(config.backend)
        if config.platform:
            platform = str(config.platform)
            return _PLATFORMS.get(platform, platform)
        if config.HasField("ensemble_scheduling"):
            return ENSEMBLE
        if config.default_model_filename.endswith(".py"):
            return PYTHON
    for filename, name in _BY_FILE:
        if files.has(number, filename):
            return name
    return ONNXRUNTIME


def file_of(
    name: str, files: VersionFiles, number: int, config: ModelConfig | None, default: str
) -> str:
    """Return a version's file: what is configured, else what is there of that which its backend
    looks for, else the default."""
    there = (filename for filename, of in _BY_FILE if of == name and files.has(number, filename))
    given = "" if config is None else str(config.default_model_filename)
    return given or next(there, default)


def find_backend(name: str) -> Backend:
    """Return the backend of this name. Raises FailedPreconditionError for one that there is not."""
    if name in _OURS:
        module, _, attribute = _OURS[name].partition(":")
        made: Backend = getattr(importlib.import_module(module), attribute)()
        return made
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        raise FailedPreconditionError(
            "the backend is not supported",
            where="config.pbtxt",
            expected=", ".join(sorted({*_OURS, *found})),
            got=name[:64],
            mend="install the distribution that brings it",
        )
    try:
        kind: Any = found[name].load()
        backend: Backend = kind()
    except Exception as error:
        raise FailedPreconditionError(
            f"the backend '{name}' cannot be loaded",
            got=type(error).__name__,
            mend="the server's log has the cause",
        ) from error
    return backend
