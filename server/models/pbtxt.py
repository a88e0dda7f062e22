"""Triton's `config.pbtxt`: read, completed from the ONNX graph, and checked against it.

Completion follows Triton's onnxruntime backend (a model can batch when the first dimension of all
inputs and outputs is dynamic) with one rule more: where those dimensions are named, the names are
the same. A graph whose output counts something else than its input's rows is then never joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from headrace.errors import FailedPreconditionError
from server.models.graphs import DEFAULT_MAX_BATCH_SIZE, can_batch, graph_tensors
from server.protocol.tensors import shape_text

ModelConfig = Any  # tritonclient's generated classes carry no types

BACKEND = "onnxruntime"
PLATFORM = "onnxruntime_onnx"
_CONFIG_BYTES_MAX = 1 << 20
_UNSUPPORTED = ("batch_output",)


class Added(NamedTuple):
    """Tensors of a graph that no client sees: the server makes the inputs and keeps the outputs.

    ModelInputs and ModelOutputs, as if they were configured.
    """

    inputs: Sequence[Any]
    outputs: Sequence[Any]


NONE_ADDED = Added((), ())


def config_datatype(datatype: str) -> str:
    """Return the configuration's name of an OIP datatype: TYPE_STRING for BYTES, and so on."""
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def oip_datatype(data_type: int) -> str:
    """Return the OIP datatype of a configuration's `data_type`."""
    name: str = model_config_pb2.DataType.Name(data_type)
    return "BYTES" if name == "TYPE_STRING" else name.removeprefix("TYPE_")


def wrong(what: str, expected: object, got: object) -> FailedPreconditionError:
    """Return the error of a configuration that says what it cannot."""
    return FailedPreconditionError(what, where="config.pbtxt", expected=expected, got=got)


def read_config(path: Path) -> ModelConfig:
    """Return the configuration in `path`. Raises FailedPreconditionError with line and column."""
    return config_of(path.read_bytes())


def config_of(data: bytes) -> ModelConfig:
    """Return the configuration in a file's bytes. Raises as `read_config`."""
    if len(data) > _CONFIG_BYTES_MAX:
        raise FailedPreconditionError(
            "the file is too large", where="config.pbtxt", expected=f"at most {_CONFIG_BYTES_MAX}"
        )
    try:
        return text_format.Parse(data.decode(), model_config_pb2.ModelConfig())
    except UnicodeDecodeError:
        raise FailedPreconditionError("the file is not UTF-8", where="config.pbtxt") from None
    except text_format.ParseError as error:  # its text is "line:column : what"
        raise FailedPreconditionError(
            f"not a model configuration, {error}", where="config.pbtxt"
        ) from None


def parse_config(text: str) -> ModelConfig:
    """Return the configuration that a request gives as JSON. Raises FailedPreconditionError."""
    try:
        return json_format.Parse(text, model_config_pb2.ModelConfig())
    except json_format.ParseError as error:
        raise FailedPreconditionError(f"Invalid config override: {error}") from None


def check_supported(config: ModelConfig, name: str) -> None:
    """Raise FailedPreconditionError when `config` asks for what this server does not do."""
    if config.name and config.name != name:
        raise wrong("name differs from the folder's", name, config.name)
    batching = config.dynamic_batching
    if batching.default_priority_level > batching.priority_levels or (
        batching.priority_levels and not batching.default_priority_level
    ):
        raise wrong(
            "default_priority_level is none of the priority_levels",
            f"1 to {batching.priority_levels}" if batching.priority_levels else "none",
            batching.default_priority_level,
        )
    if config.max_batch_size < 0:
        raise wrong("max_batch_size is negative", "0 or more", config.max_batch_size)
    for field in _UNSUPPORTED:
        if field in {known.name for known, _ in config.ListFields()}:
            raise wrong(f"{field} is not supported", "a plain model", field)
    for tensor in (*config.input, *config.output):
        if tensor.HasField("reshape"):
            raise wrong(f"reshape of '{tensor.name}' is not supported", "the graph's shape", "one")


def check_plain(config: ModelConfig) -> None:
    """Raise FailedPreconditionError when `config` asks for more than a graph can do."""
    if config.HasField("ensemble_scheduling"):
        raise wrong("ensemble_scheduling is of ensembles", "platform: 'ensemble'", "a graph")
    if config.model_transaction_policy.decoupled:
        raise wrong("a graph cannot be decoupled", "one answer a request", "decoupled")


def chosen_versions(config: ModelConfig, available: list[int]) -> list[int]:
    """Return which of the versions on disk the policy wants, ascending. Default: the latest one."""
    policy = config.version_policy
    kind = policy.WhichOneof("policy_choice")
    available = sorted(available)
    if kind == "all":
        return available
    if kind == "specific":
        return [version for version in available if version in set(policy.specific.versions)]
    count = policy.latest.num_versions if kind == "latest" else 1
    return available[-max(count, 1) :]


def drafted(given: ModelConfig | None, name: str) -> ModelConfig:
    """Return a copy of what is configured, with the model's name and the default version policy."""
    config = model_config_pb2.ModelConfig()
    if given is not None:
        config.CopyFrom(given)
    config.name = name
    if not config.HasField("version_policy"):
        config.version_policy.latest.num_versions = 1
    return config


def complete_config(
    given: ModelConfig | None, name: str, graph: Any, added: Added = NONE_ADDED
) -> ModelConfig:
    """Return the whole configuration of a model.

    `graph` has `inputs` and `outputs` as onnxruntime describes them; `added` are those of them that
    no client sees. Raises FailedPreconditionError when the given configuration contradicts the
    graph.
    """
    config = drafted(given, name)
    config.backend = BACKEND
    config.platform = PLATFORM
    config.default_model_filename = config.default_model_filename or "model.onnx"
    if config.max_batch_size == 0 and not config.input and can_batch(graph):
        config.max_batch_size = DEFAULT_MAX_BATCH_SIZE
    if config.max_batch_size > 0:
        for node in graph.inputs:
            if not node.shape or isinstance(node.shape[0], int):
                raise wrong(
                    f"input '{node.name}' of the graph has no batch dimension",
                    "max_batch_size 0",
                    config.max_batch_size,
                )
        if config.WhichOneof("scheduling_choice") is None:
            config.dynamic_batching.SetInParent()
    _complete_tensors(config, config.input, graph.inputs, "input", added.inputs)
    _complete_tensors(config, config.output, graph.outputs, "output", added.outputs)
    known = {tensor.name for tensor in (*config.input, *added.inputs)}
    if len(known) != len(graph.inputs):
        missing = [node.name for node in graph.inputs if node.name not in known]
        raise wrong("an input of the graph is not listed", f"input '{missing[0]}'", "none")
    return config


def _complete_tensors(
    config: ModelConfig, tensors: Any, nodes: list[Any], kind: str, added: Sequence[Any]
) -> None:
    batch_dims = 1 if config.max_batch_size > 0 else 0
    known = {
        name: (config_datatype(tensor.datatype), tensor.dims[batch_dims:])
        for name, tensor in graph_tensors(nodes, kind).items()
    }
    if not tensors:
        unseen = {tensor.name for tensor in added}
        for name, (datatype, dims) in known.items():
            if name not in unseen:
                tensors.add(name=name, data_type=datatype, dims=dims)
    for tensor in (*tensors, *added):
        if tensor.name not in known:
            raise wrong(f"the graph has no {kind} '{tensor.name}'", ", ".join(known), tensor.name)
        datatype, dims = known[tensor.name]
        got = model_config_pb2.DataType.Name(tensor.data_type)
        if got != datatype:
            raise wrong(f"data_type of {kind} '{tensor.name}' differs", datatype, got)
        if kind == "input" and tensor.allow_ragged_batch:
            if dims:
                raise wrong(
                    f"input '{tensor.name}' is ragged, the graph's is not",
                    "a graph that takes it in one dimension",
                    shape_text([-1, *dims]),
                )
            continue
        fits = len(dims) == len(tensor.dims) and all(
            want in {-1, size} for want, size in zip(dims, tensor.dims, strict=True)
        )
        if not fits:
            raise wrong(
                f"dims of {kind} '{tensor.name}' differ from the graph's"
                + (" (without its batch dimension)" if batch_dims else ""),
                shape_text(dims),
                shape_text(tensor.dims),
            )
