"""Where a configuration wants a model to run, and with which options of onnxruntime's providers.

Names and values are those of Triton's onnxruntime backend. An option that holds an address or a
path, or loads a library, is not taken: a configuration may come with a request.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headrace.errors import FailedPreconditionError
from server.execution.buckets import BUCKETS_MAX
from server.execution.devices import (
    CPU_PROVIDERS,
    CUDA_PROVIDER,
    TENSORRT_PROVIDER,
    Device,
    Placement,
)
from server.models.pbtxt import ModelConfig, wrong

_GRAPHS = "enable_cuda_graph"
_BOOLEANS = {"0": "False", "false": "False", "1": "True", "true": "True"}
_NUMBER = re.compile(r"-?[0-9]{1,20}")
_TEXT = re.compile(r"[A-Za-z0-9_+,:.\-]{1,1024}")
_SIZE_MAX = (1 << 64) - 1


class _Choice(NamedTuple):
    """A value that is one of a few words; Triton's older parameters number them."""

    words: tuple[str, ...]


class _Number(NamedTuple):
    least: int
    most: int


_BOOLEAN, _PLAIN_TEXT = "a boolean", "a text"
_Kind = _Choice | _Number | str
_ALGORITHMS = _Choice(("EXHAUSTIVE", "HEURISTIC", "DEFAULT"))
_STRATEGIES = _Choice(("kNextPowerOfTwo", "kSameAsRequested"))
_CUDA: dict[str, _Kind] = {
    "arena_extend_strategy": _STRATEGIES,
    "cudnn_conv1d_pad_to_nc1d": _BOOLEAN,
    "cudnn_conv_algo_search": _ALGORITHMS,
    "cudnn_conv_use_max_workspace": _BOOLEAN,
    "do_copy_in_default_stream": _BOOLEAN,
    _GRAPHS: _BOOLEAN,
    "enable_skip_layer_norm_strict_mode": _BOOLEAN,
    "fuse_conv_bias": _BOOLEAN,
    "gpu_mem_limit": _Number(1, _SIZE_MAX),
    "prefer_nhwc": _BOOLEAN,
    "sdpa_kernel": _Number(0, 1 << 16),
    "tunable_op_enable": _BOOLEAN,
    "tunable_op_max_tuning_duration_ms": _Number(0, 1 << 31),
    "tunable_op_tuning_enable": _BOOLEAN,
    "use_ep_level_unified_stream": _BOOLEAN,
    "use_tf32": _BOOLEAN,
}
# What Triton's backend takes as parameters of the model itself, and a word more.
_PARAMETERS = (
    "arena_extend_strategy",
    "cudnn_conv_algo_search",
    "do_copy_in_default_stream",
    _GRAPHS,
    "gpu_mem_limit",
)
_PRECISION = "precision_mode"
_PRECISIONS = {
    "FP32": "",
    "FP16": "trt_fp16_enable",
    "BF16": "trt_bf16_enable",
    "INT8": "trt_int8_enable",
}
_WORKSPACE = "max_workspace_size_bytes"
_NATIVE_TABLE = "int8_use_native_calibration_table"
_ENGINE_CACHE, _TIMING_CACHE = "trt_engine_cache_enable", "trt_timing_cache_enable"
_TENSORRT: dict[str, _Kind] = {
    _NATIVE_TABLE: _BOOLEAN,
    _WORKSPACE: _Number(1, _SIZE_MAX),
    _PRECISION: _Choice(tuple(_PRECISIONS)),
    "trt_auxiliary_streams": _Number(-1, 64),
    "trt_build_heuristics_enable": _BOOLEAN,
    "trt_builder_optimization_level": _Number(0, 5),
    "trt_context_memory_sharing_enable": _BOOLEAN,
    "trt_detailed_build_log": _BOOLEAN,
    "trt_dla_core": _Number(0, 64),
    "trt_dla_enable": _BOOLEAN,
    _ENGINE_CACHE: _BOOLEAN,
    "trt_force_sequential_engine_build": _BOOLEAN,
    "trt_force_timing_cache": _BOOLEAN,
    "trt_layer_norm_fp32_fallback": _BOOLEAN,
    "trt_max_partition_iterations": _Number(1, 1 << 31),
    "trt_min_subgraph_size": _Number(1, 1 << 31),
    "trt_profile_max_shapes": _PLAIN_TEXT,
    "trt_profile_min_shapes": _PLAIN_TEXT,
    "trt_profile_opt_shapes": _PLAIN_TEXT,
    "trt_sparsity_enable": _BOOLEAN,
    "trt_tactic_sources": _PLAIN_TEXT,
    _TIMING_CACHE: _BOOLEAN,
}
_RENAMED = {_NATIVE_TABLE: "trt_int8_use_native_calibration_table"}
_RENAMED[_WORKSPACE] = "trt_max_workspace_size"


class _Options(NamedTuple):
    """Options of the two providers, as onnxruntime takes them. `tensorrt` None: not wanted."""

    cuda: dict[str, str]
    tensorrt: dict[str, str] | None
    graphs: bool
    buckets: tuple[int, ...]


def placement_of(
    config: ModelConfig | None, offered: Sequence[str], gpus: Callable[[], int]
) -> Placement | None:
    """Return where a model is to run; None: on the CPU.

    `offered` are onnxruntime's providers, and `gpus` says how many GPUs there are: it is asked only
    where they could be used. Raises FailedPreconditionError for options that are wrong, wherever
    the model would run, and for groups of the kind KIND_GPU that cannot be had.
    """
    options = _Options({}, None, graphs=False, buckets=()) if config is None else _options(config)
    groups = [] if config is None else list(config.instance_group)
    there = gpus() if CUDA_PROVIDER in offered else 0
    numbers: list[int] = []
    optional, on_cpu = True, False
    for group in groups:
        found = _numbers(group, there, offered)
        on_cpu = on_cpu or not found
        optional = optional and group.kind == group.KIND_AUTO
        numbers += found
    if not groups:
        numbers = list(range(there))
    if not numbers:
        return None
    if on_cpu:
        raise wrong("instance groups are on GPUs and on the CPU", "one kind", "both")
    if options.tensorrt is not None and TENSORRT_PROVIDER not in offered:
        raise wrong(
            "this onnxruntime does not come with TensorRT", TENSORRT_PROVIDER, ", ".join(offered)
        )
    devices = tuple(_device(number, options) for number in dict.fromkeys(numbers))
    return Placement(devices, optional, options.graphs, options.buckets)


def resolve_groups(config: ModelConfig, placement: Placement | None) -> None:
    """Say in a whole configuration where the model runs, as Triton does: KIND_AUTO is no more."""
    if placement is not None and not config.instance_group:
        config.instance_group.add(count=1)
    for group in config.instance_group:
        if group.kind not in {group.KIND_AUTO, group.KIND_GPU}:
            continue
        group.kind = group.KIND_CPU if placement is None else group.KIND_GPU
        if placement is None:
            del group.gpus[:]
        elif not group.gpus:
            group.gpus.extend(device.number for device in placement.devices)


def check_for_graphs(config: ModelConfig) -> None:
    """Raise FailedPreconditionError for a whole configuration that CUDA graphs cannot follow."""
    if config.max_batch_size < 1:
        raise wrong(f"{_GRAPHS} is of models that batch", "max_batch_size of 1 or more", 0)
    for tensor in config.input:
        if any(size < 0 for size in tensor.dims):
            raise wrong(
                f"{_GRAPHS} wants inputs of fixed sizes, but '{tensor.name}' has others",
                "dims without -1",
                list(tensor.dims),
            )


def _numbers(group: Any, there: int, offered: Sequence[str]) -> list[int]:
    """Return the GPUs of one instance group; none: it is on the CPU."""
    wanted = list(group.gpus)
    if group.kind not in {group.KIND_AUTO, group.KIND_GPU}:
        if wanted:
            kind = "KIND_CPU" if group.kind == group.KIND_CPU else "KIND_MODEL"
            raise wrong(f"an instance group of {kind} names GPUs", "no gpus", wanted)
        return []
    present = all(0 <= number < there for number in wanted)
    if there and present:
        return wanted or list(range(there))
    if group.kind == group.KIND_AUTO:
        return []
    if CUDA_PROVIDER not in offered:
        raise FailedPreconditionError(
            "an instance group has kind KIND_GPU, but this onnxruntime has no CUDA",
            where="config.pbtxt",
            expected=CUDA_PROVIDER,
            got=", ".join(offered),
            mend="install the extra `gpu` as docs/gpu.md says, or set kind: KIND_CPU",
        )
    raise FailedPreconditionError(
        "an instance group has kind KIND_GPU, but CUDA does not see that GPU",
        where="config.pbtxt",
        expected=f"a GPU of {there}, numbered from 0",
        got=", ".join(map(str, wanted)) or "any",
        mend="look at nvidia-smi and CUDA_VISIBLE_DEVICES, or set kind: KIND_CPU",
    )


def _device(number: int, options: _Options) -> Device:
    own = {"device_id": str(number)}
    providers = [(CUDA_PROVIDER, {**options.cuda, **own}), *CPU_PROVIDERS]
    if options.tensorrt is not None:
        providers.insert(0, (TENSORRT_PROVIDER, {**options.tensorrt, **own}))
    return Device("cuda", number, tuple(providers))


def _options(config: ModelConfig) -> _Options:
    parameters = {
        name: config.parameters[name].string_value
        for name in _PARAMETERS
        if name in config.parameters
    }
    cuda = _read(parameters, _CUDA, "parameter")
    tensorrt: dict[str, str] | None = None
    for accelerator in config.optimization.execution_accelerators.gpu_execution_accelerator:
        if accelerator.name == "cuda":
            cuda.update(_read(accelerator.parameters, _CUDA, "parameter of cuda"))
        elif accelerator.name == "tensorrt":
            tensorrt = _tensorrt(accelerator.parameters)
        else:
            raise wrong(
                "unknown Execution Accelerator is requested", "cuda, tensorrt", accelerator.name
            )
    if config.optimization.cuda.graphs:
        cuda[_GRAPHS] = "True"
    graphs = cuda.get(_GRAPHS) == "True"
    if graphs and tensorrt is not None:
        raise wrong(f"{_GRAPHS} is not for models on TensorRT", "the accelerator cuda", "tensorrt")
    return _Options(cuda, tensorrt, graphs, tuple(_buckets(config)))


def _buckets(config: ModelConfig) -> Iterator[int]:
    specs = config.optimization.cuda.graph_spec
    if len(specs) > BUCKETS_MAX:
        raise wrong("too many of graph_spec", f"at most {BUCKETS_MAX}", len(specs))
    for spec in specs:
        if spec.input or spec.HasField("graph_lower_bound"):
            raise wrong("graph_spec is not supported with inputs or bounds", "batch_size", "more")
        if not 0 < spec.batch_size <= max(config.max_batch_size, 1):
            raise wrong(
                "batch_size of a graph_spec is none that the model runs",
                f"1 to {config.max_batch_size} (max_batch_size)",
                spec.batch_size,
            )
        yield spec.batch_size


def _tensorrt(given: Mapping[str, str]) -> dict[str, str]:
    read = _read(given, _TENSORRT, "parameter of tensorrt")
    precision = _PRECISIONS[read.pop(_PRECISION, "FP32")]
    options = {_RENAMED.get(name, name): value for name, value in read.items()}
    if precision:
        options[precision] = "True"
    for switch in (_ENGINE_CACHE, _TIMING_CACHE):
        if options.get(switch) == "True":
            options[switch.replace("_enable", "_path")] = str(_cache_folder())
    return options


def _cache_folder() -> Path:
    """Return where engines lie that TensorRT built: it takes minutes to build one."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches, "headrace", "tensorrt")


def _read(given: Mapping[str, str], known: Mapping[str, _Kind], what: str) -> dict[str, str]:
    """Return values as onnxruntime takes them, by Triton's names."""
    for name in given:
        if name not in known:
            raise FailedPreconditionError(
                f"unknown {what}",
                where="config.pbtxt",
                expected=", ".join(known),
                got=name[:64],
                mend="see docs/gpu.md for what is not taken from a configuration",
            )
    return {name: _value(name, value, known[name], what) for name, value in given.items()}


def _value(name: str, text: str, kind: _Kind, what: str) -> str:
    if isinstance(kind, _Choice):
        if text.isascii() and text.isdigit() and int(text[:3]) < len(kind.words):
            text = kind.words[int(text[:3])]
        if text in kind.words:
            return text
        expected = ", ".join(kind.words)
    elif isinstance(kind, _Number):
        if _NUMBER.fullmatch(text) and kind.least <= int(text) <= kind.most:
            return str(int(text))
        expected = f"a whole number from {kind.least} to {kind.most}"
    elif kind == _BOOLEAN:
        if text.lower() in _BOOLEANS:
            return _BOOLEANS[text.lower()]
        expected = "0, 1, false or true"
    else:
        if _TEXT.fullmatch(text):
            return text
        expected = "letters, digits and _+,:.-"
    raise wrong(f"{what} {name} has a wrong value", expected, text[:64])
