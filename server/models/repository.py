"""Triton's model repository: NAME/config.pbtxt (optional) and NAME/<number>/model.onnx.

A model that cannot be loaded is listed with its reason and never stops the others.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from server.execution.session import Session
from server.models.loaded import LoadedModel, TensorSignature
from server.models.pbtxt import (
    ModelConfig,
    check_supported,
    chosen_versions,
    complete_config,
    read_config,
)

_LOG = logging.getLogger(__name__)
_CONFIG_FILE = "config.pbtxt"
_DATATYPES = {"TYPE_STRING": "BYTES"}


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of the repository index. State: READY or UNAVAILABLE (then `reason` says why)."""

    name: str
    version: str
    state: str
    reason: str = ""


def signatures(tensors: Any, max_batch_size: int) -> list[TensorSignature]:
    """Return the full shapes of a configuration's tensors, the batch dimension in front."""
    from tritonclient.grpc.model_config_pb2 import DataType

    batch = (-1,) if max_batch_size > 0 else ()
    result = []
    for tensor in tensors:
        name = DataType.Name(tensor.data_type)
        datatype = _DATATYPES.get(name, name.removeprefix("TYPE_"))
        result.append(TensorSignature(tensor.name, datatype, (*batch, *tensor.dims)))
    return result


class ModelRepository:
    """The models of one folder, loaded once at the start."""

    def __init__(self, root: Path, executor: Executor) -> None:
        self._root = root
        self._executor = executor
        self._models: dict[str, dict[int, LoadedModel]] = {}
        self._failures: dict[str, dict[int, HeadraceError]] = {}

    async def load(self) -> None:
        """Load every model. Raises NotFoundError when the folder itself is not there."""
        if not self._root.is_dir():
            raise NotFoundError("the model repository is not a folder", got=str(self._root))
        loop = asyncio.get_running_loop()
        for folder in sorted(self._root.iterdir()):
            if folder.is_dir() and not folder.name.startswith("."):
                await loop.run_in_executor(self._executor, self._load_model, folder)
        if not self._models and not any(self._root.glob("*/[1-9]*/*.onnx")):
            if (self._root / _CONFIG_FILE).is_file() or any(self._root.glob("[1-9]*/*.onnx")):
                _LOG.warning("%s looks like one model; give its parent", self._root)
            else:
                _LOG.warning("no model is served: %s holds no NAME/1/model.onnx", self._root)

    def get(self, name: str, version: str = "") -> LoadedModel:
        """Return the model, its latest loaded version where none is named.

        Raises NotFoundError or UnavailableError, in Triton's words.
        """
        loaded = self._models.get(name, {})
        failed = self._failures.get(name, {})
        if not loaded and not failed:
            raise NotFoundError(f"Request for unknown model: '{name}' is not found")
        if not version:
            if not loaded:
                number, error = max(failed.items())
                raise NotFoundError(
                    f"Request for unknown model: '{name}' has no available versions",
                    mend=f"version {number} could not be loaded: {error.message}",
                )
            return loaded[max(loaded)]
        if not version.isascii() or not version.isdigit():
            raise InvalidArgumentError(
                f"failed to get model version from specified version string '{version}'",
                expected="an integral value > 0",
            )
        number = int(version)
        if number in loaded:
            return loaded[number]
        if number in failed:
            raise UnavailableError(
                f"Request for unknown model: '{name}' version {number} is not at ready state",
                mend=failed[number].message,
            )
        raise NotFoundError(f"Request for unknown model: '{name}' version {number} is not found")

    def models(self) -> list[LoadedModel]:
        """Return every loaded version, by name and number."""
        return [
            versions[number]
            for _, versions in sorted(self._models.items())
            for number in sorted(versions)
        ]

    def versions(self, name: str) -> list[str]:
        """Return the loaded versions of a model, ascending."""
        return [str(number) for number in sorted(self._models.get(name, {}))]

    def index(self) -> list[IndexEntry]:
        """Return one entry per version, loaded or not."""
        entries = []
        for name in sorted({*self._models, *self._failures}):
            entries += [IndexEntry(name, version, "READY") for version in self.versions(name)]
            for number, error in sorted(self._failures.get(name, {}).items()):
                version = str(number) if number else ""
                entries.append(IndexEntry(name, version, "UNAVAILABLE", error.message))
        return entries

    def _load_model(self, folder: Path) -> None:
        """Load one folder; what fails is kept as the reason. Runs in the executor."""
        name = folder.name
        try:
            config = None
            if (folder / _CONFIG_FILE).is_file():
                config = read_config(folder / _CONFIG_FILE)
                check_supported(config, name)
            numbers = self._version_numbers(folder, config)
        except HeadraceError as error:
            self._failed(name, 0, error)
            return
        except OSError as error:
            _LOG.error("model %s: %s", name, error)
            self._failed(name, 0, FailedPreconditionError("the folder cannot be read"))
            return
        for number in numbers:
            try:
                self._load_version(folder, number, config)
            except HeadraceError as error:
                self._failed(name, number, error)

    @staticmethod
    def _version_numbers(folder: Path, config: ModelConfig | None) -> list[int]:
        available = [
            int(entry.name)
            for entry in folder.iterdir()
            if entry.is_dir() and entry.name.isdecimal() and not entry.name.startswith("0")
        ]
        if config is not None:
            available = chosen_versions(config, available)
        elif available:
            available = [max(available)]
        if not available:
            raise FailedPreconditionError(
                "there is no version folder that the version policy takes",
                expected="a folder with a whole number as its name, such as 1/",
            )
        return available

    def _load_version(self, folder: Path, number: int, config: ModelConfig | None) -> None:
        filename = (config.default_model_filename if config is not None else "") or "model.onnx"
        path = folder / str(number) / filename
        if "/" in filename or not path.is_file():
            raise FailedPreconditionError(f"{number}/{filename} is not there")
        session = Session(path, path.parent)
        full = complete_config(config, folder.name, session)
        model = LoadedModel(
            folder.name,
            str(number),
            session,
            full,
            signatures(full.input, full.max_batch_size),
            signatures(full.output, full.max_batch_size),
            self._executor,
        )
        model.warm_up()
        self._models.setdefault(folder.name, {})[number] = model

    def _failed(self, name: str, number: int, error: HeadraceError) -> None:
        _LOG.error("failed to load model %s: %s", name, error.message)
        if error.__cause__ is not None:
            _LOG.error("model %s: %s", name, error.__cause__)
        self._failures.setdefault(name, {})[number] = error
