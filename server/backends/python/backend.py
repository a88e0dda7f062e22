"""Loads Python models: `1/model.py` with a class TritonPythonModel."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2

from headrace.errors import FailedPreconditionError
from server.backends.contract import Host, Made, ModelConfig, VersionFiles
from server.backends.python.engine import PythonEngine
from server.backends.python.instance import Instance, Setup
from server.backends.python.stub.memory import DTYPES
from server.execution.instances import count_of
from server.execution.sequence_engine import SequenceEngine
from server.execution.sequence_tensors import SequencePlan
from server.execution.statistics import Statistics
from server.models.config_json import message_json
from server.models.pbtxt import drafted, oip_datatype, wrong
from server.models.sequence_config import added_tensors, complete_sequences, sequence_plan

_INSTANCES_MAX = 64
# Settings of a model, among `parameters` of its configuration, and their defaults.
_EXECUTE_MAX_S = ("EXECUTE_SECONDS_MAX", 600.0)
_START_MAX_S = ("START_SECONDS_MAX", 600.0)
_FINALIZE_MAX_S = ("FINALIZE_SECONDS_MAX", 10.0)
_MEMORY = "MEMORY_BYTES_MAX"
# What a process reserves and does not use (threads' stacks, arenas) counts where it is limited.
_RESERVED_BYTES = 512 << 20
_MEMORY_SHARE = 0.8  # of the machine's, where the configuration does not say


@dataclass(frozen=True, slots=True)
class _Limits:
    execute_s: float
    start_s: float
    finalize_s: float
    memory_bytes: int


class PythonBackend:
    """Starts a process per instance."""

    default_filename = "model.py"
    graphs = False

    def load(
        self,
        files: VersionFiles,
        number: int,
        config: ModelConfig | None,
        host: Host,
        statistics: Statistics,
    ) -> Made:
        """Return the model, every instance of it initialized. Raises FailedPreconditionError with
        the model's own reason."""
        draft = drafted(config, files.name)
        draft.backend = "python"
        draft.default_model_filename = draft.default_model_filename or self.default_filename
        _check(draft)
        loading = _Loading(
            files.path(number, draft.default_model_filename), str(number), draft, host, statistics
        )
        return asyncio.run_coroutine_threadsafe(loading.load(), host.loop).result()


class _Loading:
    """One version on its way."""

    def __init__(
        self, file: Path, version: str, draft: ModelConfig, host: Host, statistics: Statistics
    ) -> None:
        self._file = file.absolute()
        self._version = version
        self._draft = draft
        self._host = host
        self._threads = host.executor
        self._statistics = statistics
        self._limits = _limits(draft)
        self._config: Any = draft  # until the model completed it
        self._plan: SequencePlan | None = None
        self._engines: list[PythonEngine] = []  # of all instances, or one of each

    async def load(self) -> Made:
        """Start all instances, the first one before the others: it says what the model is."""
        first, completed = await self._begin()
        try:
            self._config = _completed(self._draft, completed)
            self._plan = _sequences(self._config)
            # Sequences stay with the instance that began them.
            count = count_of(self._config)
            apart = count if self._plan is not None else 1
            self._engines += [self._engine(count // apart) for _ in range(apart)]
        except BaseException:
            await first.kill("it could not be loaded")
            raise
        started = await asyncio.gather(
            self._initialize(first, 0),
            *(self.start(number) for number in range(1, count)),
            return_exceptions=True,
        )
        for at, engine in enumerate(self._engines):
            engine.serve({
                number: instance
                for number, instance in enumerate(started)
                if isinstance(instance, Instance) and number % len(self._engines) == at
            })  # fmt: skip
        for each in started:
            if isinstance(each, BaseException):
                await asyncio.gather(*(engine.closed() for engine in self._engines))
                raise each
        if self._plan is None:
            return Made(self._config, self._engines[0])
        outputs = [tensor.name for tensor in self._config.output]
        loop = asyncio.get_running_loop()
        return Made(
            self._config,
            SequenceEngine(self._config.name, self._plan, self._engines, outputs, loop),
        )

    def _engine(self, count: int) -> PythonEngine:
        return PythonEngine(
            self._config, self._setup(), self._statistics, self._threads, self.start, count=count
        )

    async def start(self, number: int) -> Instance:
        """Return the instance of this number, initialized."""
        instance, _ = await self._begin()
        return await self._initialize(instance, number)

    async def _begin(self) -> tuple[Instance, str]:
        """Return an instance that has imported the model, and the model's configuration."""
        instance = Instance(self._draft.name, self._host)
        try:
            return instance, await instance.configure(
                str(self._file),
                json.dumps(message_json(self._draft)),
                self._limits.memory_bytes + _RESERVED_BYTES,
                self._limits.start_s,
            )
        except BaseException:
            await instance.kill("it could not be imported")
            raise

    async def _initialize(self, instance: Instance, number: int) -> Instance:
        instance.owner = self._engines[number % len(self._engines)]
        config = self._config
        kind, device = _placement(config, number)
        arguments = {
            "model_config": json.dumps(message_json(config)),
            "model_instance_kind": kind,
            "model_instance_name": f"{config.name}_0_{number}",
            "model_instance_device_id": device,
            "model_repository": str(self._file.parent.parent),
            "model_version": self._version,
            "model_name": config.name,
        }
        decoupled = config.model_transaction_policy.decoupled
        try:
            await instance.initialize(self._setup(), arguments, decoupled=decoupled)
        except BaseException:
            await instance.kill("it could not be initialized")
            raise
        return instance

    def _setup(self) -> Setup:
        config, limits = self._config, self._limits
        return Setup(
            config.name,
            [
                (tensor.name, oip_datatype(tensor.data_type))
                for tensor in (*config.input, *added_tensors(config).inputs)
            ],
            [tensor.name for tensor in config.output],
            [oip_datatype(tensor.data_type) for tensor in config.output],
            limits.execute_s,
            limits.start_s,
            limits.finalize_s,
            limits.memory_bytes,
        )


def _sequences(config: ModelConfig) -> SequencePlan | None:
    """Return how a model's sequences run, if it has any; complete its configuration."""
    if not config.HasField("sequence_batching"):
        return None
    if config.model_transaction_policy.decoupled:
        raise wrong("a decoupled model cannot have sequences", "one answer a request", "decoupled")
    if config.sequence_batching.state:
        raise wrong("implicit state is of graphs", "a model that keeps its own", "state")
    complete_sequences(config)

    def no_file(folder: str, filename: str) -> bytes:
        raise AssertionError(f"a file without a state: {folder}/{filename}")

    return sequence_plan(config, no_file)


def _check(config: ModelConfig) -> None:
    if config.HasField("ensemble_scheduling"):
        raise wrong("ensemble_scheduling is of ensembles", "platform: 'ensemble'", "python")
    if config.batch_input:
        raise wrong("batch_input is of graphs", "a model that gets its requests apart", "python")
    if "EXECUTION_ENV_PATH" in config.parameters:
        raise FailedPreconditionError(
            "parameter EXECUTION_ENV_PATH is not supported",
            where="config.pbtxt",
            mend="install what the model needs beside the server: it runs by the same Python",
        )
    if count_of(config) > _INSTANCES_MAX:
        raise wrong("too many instances", f"at most {_INSTANCES_MAX}", count_of(config))


def _placement(config: ModelConfig, number: int) -> tuple[str, str]:
    """Return kind and device of an instance, as Triton tells a model."""
    for group in config.instance_group:
        if number < max(group.count, 1):
            if group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU:
                return "GPU", str(group.gpus[0] if group.gpus else 0)
            break
        number -= max(group.count, 1)
    return "CPU", "0"


def _limits(config: ModelConfig) -> _Limits:
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * _MEMORY_SHARE
    return _Limits(
        _number(config, *_EXECUTE_MAX_S),
        _number(config, *_START_MAX_S),
        _number(config, *_FINALIZE_MAX_S),
        int(_number(config, _MEMORY, memory_bytes)),
    )


def _number(config: ModelConfig, name: str, default: float) -> float:
    if name not in config.parameters:
        return default
    text = config.parameters[name].string_value
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise wrong(f"parameter {name} is no size", "a number above 0", repr(text[:32]))
    return value


def _completed(draft: ModelConfig, text: str) -> ModelConfig:
    """Return what the model made of its configuration, checked."""
    try:
        config = json_format.Parse(text, model_config_pb2.ModelConfig())
    except json_format.ParseError as error:
        raise FailedPreconditionError(
            "auto_complete_config made no model configuration", got=str(error)[:256]
        ) from None
    config.name, config.backend = draft.name, draft.backend
    for kind, tensors in (("input", config.input), ("output", config.output)):
        names = [tensor.name for tensor in tensors]
        if not names:
            raise wrong(f"no {kind} is configured", f"an '{kind}', or auto_complete_config", "none")
        if len(set(names)) < len(names) or not all(names):
            raise wrong(f"two {kind}s have one name, or one has none", "a name each", names)
        for tensor in tensors:
            if oip_datatype(tensor.data_type) not in DTYPES:
                raise wrong(
                    f"data_type of {kind} '{tensor.name}' is not supported",
                    "TYPE_BOOL, TYPE_INT32, TYPE_FP32, TYPE_STRING …",
                    model_config_pb2.DataType.Name(tensor.data_type),
                )
    return config
