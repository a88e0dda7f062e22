"""The backends of files that other libraries write: read as data, served as ONNX graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from headrace.errors import FailedPreconditionError
from server.backends.contract import Host, Made, ModelConfig, VersionFiles
from server.backends.forests.forest import INPUT
from server.backends.forests.lightgbm_text import read_lightgbm
from server.backends.forests.xgboost_model import read_xgboost
from server.backends.lookup import LIGHTGBM, XGBOOST, file_of
from server.backends.onnx import OnnxBackend
from server.execution.device_session import open_session
from server.execution.devices import Placement
from server.execution.session import Session
from server.execution.statistics import Statistics

_FILE_BYTES_MAX = 1 << 28


class Convertible(Protocol):
    """What was read, and can be a graph."""

    @property
    def output(self) -> str:
        """What its answer is called, unless the configuration says."""

    def graph(self, input_name: str, output_name: str) -> bytes:
        """Return the ONNX file."""


class ConvertingBackend:
    """Loads models by what reads their file."""

    graphs = False

    def __init__(
        self, name: str, default_filename: str, read: Callable[[bytes], Convertible]
    ) -> None:
        self.default_filename = default_filename
        self._name = name
        self._read = read

    def load(
        self,
        files: VersionFiles,
        number: int,
        config: ModelConfig | None,
        host: Host,
        statistics: Statistics,
    ) -> Made:
        """Return the session of the graph. Raises FailedPreconditionError, UnimplementedError."""
        filename = file_of(self._name, files, number, config, self.default_filename)
        found = self._read(_bytes(files.path(number, filename), f"{number}/{filename}"))
        graph = found.graph(*_names(config, found.output))
        made = OnnxBackend().load(_Converted(files, graph), number, config, host, statistics)
        made.config.backend, made.config.platform = self._name, ""
        made.config.default_model_filename = filename
        return made._replace(graph=graph)


class LightgbmBackend(ConvertingBackend):
    """Loads LightGBM's `model.txt`."""

    def __init__(self) -> None:
        super().__init__(LIGHTGBM, "model.txt", read_lightgbm)


class XgboostBackend(ConvertingBackend):
    """Loads XGBoost's `model.json` and `model.ubj`."""

    def __init__(self) -> None:
        super().__init__(XGBOOST, "model.json", read_xgboost)


class _Converted:
    """The files of a model, one of them as a graph."""

    def __init__(self, files: VersionFiles, graph: bytes) -> None:
        self.name = files.name
        self.has = files.has
        self.path = files.path
        self.beside = files.beside
        self._graph = graph

    def session(
        self, number: int, filename: str, threads: int, placement: Placement | None = None
    ) -> Session:
        """Return the session of the graph, which has no file."""
        return open_session(self._graph, Path(), threads, placement)


def _bytes(path: Path, where: str) -> bytes:
    if path.stat().st_size > _FILE_BYTES_MAX:
        raise FailedPreconditionError(
            f"{where} is too large",
            expected=f"at most {_FILE_BYTES_MAX} bytes",
            mend="convert it to ONNX",
        )
    return path.read_bytes()


def _names(config: ModelConfig | None, output: str) -> tuple[str, str]:
    """Return what input and output are called: as configured, where there is one of each."""
    inputs = [] if config is None else list(config.input)
    outputs = [] if config is None else list(config.output)
    return (
        inputs[0].name if len(inputs) == 1 else INPUT,
        outputs[0].name if len(outputs) == 1 else output,
    )
