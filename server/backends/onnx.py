"""The onnxruntime backend: a version is one ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

from headrace.errors import FailedPreconditionError
from server.backends.contract import Host, Made, ModelConfig, VersionFiles
from server.execution.batch_runs import Run
from server.execution.batcher import Batcher
from server.execution.device_session import DeviceSession
from server.execution.devices import gpu_count
from server.execution.engine import Array, Asked, Outputs
from server.execution.instances import count_of, instances_of
from server.execution.queue_policy import policy_of
from server.execution.ragged import RaggedEngine
from server.execution.rate_limiter import claim_of
from server.execution.sequence_engine import SequenceEngine
from server.execution.session import Session
from server.execution.statistics import Statistics
from server.models.accelerators import check_for_graphs, placement_of, resolve_groups
from server.models.pbtxt import NONE_ADDED, check_plain, complete_config
from server.models.ragged_config import batch_inputs, made_of_batches, ragged_inputs
from server.models.sequence_config import added_tensors, complete_sequences, sequence_plan
from server.models.signatures import signatures
from server.protocol.tensors import DATATYPES, bytes_from_session, strings_for_session


class OnnxBackend:
    """Loads `model.onnx`."""

    default_filename = "model.onnx"
    graphs = True

    def load(
        self,
        files: VersionFiles,
        number: int,
        config: ModelConfig | None,
        host: Host,
        statistics: Statistics,
    ) -> Made:
        """Return the graph's session. Raises FailedPreconditionError."""
        added = NONE_ADDED
        has_sequences = has_ragged = False
        if config is not None:
            check_plain(config)
            has_sequences = config.HasField("sequence_batching")
            has_ragged = bool(config.batch_input or ragged_inputs(config))
            if has_sequences and has_ragged:
                raise FailedPreconditionError(
                    "ragged batches of sequences are not supported", where="config.pbtxt"
                )
            if has_sequences:
                added = added_tensors(config)
            elif has_ragged:
                added = made_of_batches(config)
        given = "" if config is None else config.default_model_filename
        threads = 1 if config is None else instances_of(config, host.executor.cores).threads
        placement = placement_of(config, onnxruntime.get_available_providers(), gpu_count)
        if placement is not None and placement.graphs and (has_sequences or has_ragged):
            raise FailedPreconditionError(
                "CUDA graphs of sequences or ragged batches are not supported",
                where="config.pbtxt",
                mend="leave out enable_cuda_graph",
            )
        session = files.session(number, given or self.default_filename, threads, placement)
        full = complete_config(config, files.name, session, added)
        on_gpu = isinstance(session, DeviceSession)
        resolve_groups(full, placement if on_gpu else None)
        if isinstance(session, DeviceSession) and session.placement.graphs:
            _capture(session, full)
        version = str(number)
        if has_sequences:
            return _with_sequences(files, version, full, session, host, statistics)
        if has_ragged:
            return _with_ragged(version, full, session, host, statistics)
        return Made(full, session)


def _capture(session: DeviceSession, config: ModelConfig) -> None:
    """Capture the CUDA graphs of a whole configuration."""
    check_for_graphs(config)
    by_name = {spec.name: spec for spec in signatures(config.input, config.max_batch_size)}
    examples = [
        np.zeros((1, *by_name[name].shape[1:]), DATATYPES[by_name[name].datatype].dtype)
        for name in session.input_names
    ]
    session.capture(examples, config.max_batch_size)


def _with_ragged(
    version: str, config: ModelConfig, session: Session, host: Host, statistics: Statistics
) -> Made:
    """Return a graph whose batches are made of requests of different sizes."""
    runs_max = instances_of(config, host.executor.cores).runs_max

    def queue_for(run: Run) -> Batcher:
        return _queue(run, version, config, host, statistics, runs_max)

    return Made(
        config, RaggedEngine(session, ragged_inputs(config), batch_inputs(config), queue_for)
    )


def _queue(
    run: Run,
    version: str,
    config: ModelConfig,
    host: Host,
    statistics: Statistics,
    runs_max: int,
) -> Batcher:
    """Return the queue in front of what runs arrays."""
    return Batcher(
        run,
        config.max_batch_size,
        statistics,
        host.executor,
        name=config.name,
        version=version,
        policy=policy_of(config),
        runs_max=runs_max,
        claim=claim_of(config, host.executor.rate_limiter),
    )


def _with_sequences(
    files: VersionFiles,
    version: str,
    config: ModelConfig,
    session: Session,
    host: Host,
    statistics: Statistics,
) -> Made:
    """Return a graph whose requests are of sequences.

    What there is of a sequence the server keeps, so a lane is any run of the one session.
    """
    for tensor in config.input:
        if tensor.optional:
            raise FailedPreconditionError(
                f"input '{tensor.name}' of a graph with sequences cannot be optional",
                where="config.pbtxt",
            )
    complete_sequences(config)
    plan = sequence_plan(config, files.beside)
    lanes = count_of(config)
    runs_max = 1
    if plan.direct is None:  # candidates of all instances go into one queue
        plan, lanes = plan.with_slots(plan.slots * lanes), 1
        runs_max = instances_of(config, host.executor.cores).runs_max
    made = [
        _SessionLane(session, _queue(session.run, version, config, host, statistics, runs_max))
        for _ in range(lanes)
    ]
    outputs = [tensor.name for tensor in config.output]
    return Made(config, SequenceEngine(config.name, plan, made, outputs, host.loop))


class _SessionLane:
    """Runs requests of sequences by a session. It remembers nothing."""

    generation = 0
    ready = True

    def __init__(self, session: Session, batcher: Batcher) -> None:
        self.input_names = session.input_names
        self.output_names = session.output_names
        self._batcher = batcher

    async def answer(self, feeds: list[Array], rows: int, asked: Asked) -> Outputs:
        """Return what came of one request."""
        feeds = [
            strings_for_session(array, f"input '{name}'") if array.dtype == object else array
            for name, array in zip(self.input_names, feeds, strict=True)
        ]
        arrays, timing = await self._batcher.submit(feeds, rows, None, who=asked.who)
        return Outputs([_protocol_array(array) for array in arrays], timing)

    async def closed(self) -> None:
        """Nothing of it outlives its runs."""


def _protocol_array(array: Any) -> Array:
    return bytes_from_session(array) if array.dtype == np.dtype(object) else array
