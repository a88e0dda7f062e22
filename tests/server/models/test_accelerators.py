"""Where a configuration puts a model, and what onnxruntime's providers are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from headrace.errors import FailedPreconditionError
from server.execution.devices import CPU_PROVIDER, CUDA_PROVIDER, TENSORRT_PROVIDER, Placement
from server.models.accelerators import check_for_graphs, placement_of, resolve_groups

PLAIN = [CPU_PROVIDER]
CUDA = [CUDA_PROVIDER, CPU_PROVIDER]
ALL = [TENSORRT_PROVIDER, *CUDA]
ON_GPU = "instance_group { kind: KIND_GPU }\n"


def config_of(text: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def placed(text: str, offered: list[str] = ALL, gpus: int = 2) -> Placement | None:
    return placement_of(config_of(text), offered, lambda: gpus)


def options(text: str, provider: str = CUDA_PROVIDER) -> dict[str, str]:
    """What a provider is told of a model on GPU 0."""
    placement = placed(ON_GPU + text, ALL, 1)
    assert placement is not None
    (device,) = placement.devices
    told = dict(device.providers)
    assert told.pop(CPU_PROVIDER) == {}
    assert told[provider].pop("device_id") == "0"
    return told[provider]


def refused(text: str, offered: list[str] = ALL, gpus: int = 2) -> str:
    with pytest.raises(FailedPreconditionError) as caught:
        placed(text, offered, gpus)
    return caught.value.message


def accelerator(name: str, **parameters: str) -> str:
    inside = "".join(f'parameters {{ key: "{k}" value: "{v}" }}' for k, v in parameters.items())
    return (
        "optimization { execution_accelerators { gpu_execution_accelerator [ "
        f'{{ name: "{name}" {inside} }} ] }} }}'
    )


def parameter(name: str, value: str) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n'


# Where it runs.


@pytest.mark.parametrize(
    ("text", "numbers", "optional"),
    [
        ("", [0, 1], True),
        ("instance_group { }", [0, 1], True),
        ("instance_group { count: 3 kind: KIND_AUTO gpus: [1] }", [1], True),
        ("instance_group { kind: KIND_GPU }", [0, 1], False),
        ("instance_group { kind: KIND_GPU gpus: [1, 0] }", [1, 0], False),
        ("instance_group [{ kind: KIND_GPU gpus: 0 }, { gpus: [0, 1] }]", [0, 1], False),
        ("instance_group { kind: KIND_GPU gpus: [1, 1, 0, 1] }", [1, 0], False),
    ],
)
def test_it_is_on_the_gpus_that_it_names_or_on_all(
    text: str, numbers: list[int], optional: bool
) -> None:
    placement = placed(text)
    assert placement is not None
    assert [device.number for device in placement.devices] == numbers
    assert placement.optional == optional
    for device in placement.devices:
        assert device.kind == "cuda"
        assert [name for name, _ in device.providers] == CUDA
        assert device.providers[0][1]["device_id"] == str(device.number)


@pytest.mark.parametrize(
    ("text", "offered", "gpus"),
    [
        ("", PLAIN, 0),
        ("", PLAIN, 2),
        ("", ALL, 0),
        ("instance_group { }", ALL, 0),
        ("instance_group { gpus: [0, 2] }", ALL, 2),
        ("instance_group { kind: KIND_CPU count: 2 }", ALL, 2),
        ("instance_group { kind: KIND_MODEL }", ALL, 2),
        ("instance_group [{ gpus: 7 }, { kind: KIND_CPU }]", ALL, 2),
    ],
)
def test_it_is_on_the_cpu(text: str, offered: list[str], gpus: int) -> None:
    assert placed(text, offered, gpus) is None


def test_without_a_configuration_it_is_as_one_that_says_nothing() -> None:
    assert placement_of(None, PLAIN, lambda: 1) is None
    placement = placement_of(None, ALL, lambda: 1)
    assert placement is not None
    assert placement.optional


def test_gpus_are_not_counted_where_onnxruntime_has_no_cuda() -> None:
    def count() -> int:
        raise AssertionError("it would initialise CUDA")

    assert placement_of(config_of(""), PLAIN, count) is None


@pytest.mark.parametrize(
    ("text", "offered", "gpus", "words"),
    [
        (ON_GPU, PLAIN, 1, ["KIND_GPU", "CUDAExecutionProvider", "extra `gpu`"]),
        (ON_GPU, CUDA, 0, ["KIND_GPU", "a GPU of 0", "KIND_CPU"]),
        ("instance_group { kind: KIND_GPU gpus: [2] }", CUDA, 2, ["a GPU of 2", "got 2"]),
        ("instance_group { kind: KIND_GPU gpus: [-1] }", CUDA, 2, ["a GPU of 2", "got -1"]),
        ("instance_group { kind: KIND_CPU gpus: [0] }", CUDA, 2, ["KIND_CPU names GPUs"]),
        ("instance_group { kind: KIND_MODEL gpus: [0] }", CUDA, 2, ["KIND_MODEL names GPUs"]),
        (ON_GPU + "instance_group { kind: KIND_CPU }", CUDA, 2, ["on GPUs and on the CPU"]),
        (ON_GPU + accelerator("tensorrt"), CUDA, 1, ["TensorrtExecutionProvider"]),
    ],
)
def test_a_group_that_cannot_be_had_is_refused(
    text: str, offered: list[str], gpus: int, words: list[str]
) -> None:
    message = refused(text, offered, gpus)
    assert "config.pbtxt" in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "gpus", "groups"),
    [
        ("", 0, []),
        ("", 2, [("KIND_GPU", 1, [0, 1])]),
        ("instance_group { count: 2 }", 2, [("KIND_GPU", 2, [0, 1])]),
        ("instance_group { gpus: 1 }", 2, [("KIND_GPU", 0, [1])]),
        ("instance_group { gpus: 9 }", 2, [("KIND_CPU", 0, [])]),
        ("instance_group { kind: KIND_CPU }", 2, [("KIND_CPU", 0, [])]),
    ],
)
def test_the_whole_configuration_says_where_it_runs(
    text: str, gpus: int, groups: list[tuple[str, int, list[int]]]
) -> None:
    config = config_of(text)
    resolve_groups(config, placement_of(config, ALL, lambda: gpus))
    kind = model_config_pb2.ModelInstanceGroup.Kind
    found = [(kind.Name(g.kind), g.count, list(g.gpus)) for g in config.instance_group]
    assert found == groups


# What the providers are told.


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", {}),
        (parameter("cudnn_conv_algo_search", "0"), {"cudnn_conv_algo_search": "EXHAUSTIVE"}),
        (parameter("cudnn_conv_algo_search", "2"), {"cudnn_conv_algo_search": "DEFAULT"}),
        (parameter("arena_extend_strategy", "1"), {"arena_extend_strategy": "kSameAsRequested"}),
        (parameter("gpu_mem_limit", "4294967200"), {"gpu_mem_limit": "4294967200"}),
        (parameter("gpu_mem_limit", str(2**64 - 1)), {"gpu_mem_limit": str(2**64 - 1)}),
        (parameter("do_copy_in_default_stream", "0"), {"do_copy_in_default_stream": "False"}),
        (parameter("enable_cuda_graph", "1"), {"enable_cuda_graph": "True"}),
        (parameter("use_tf32", "0"), {}),  # as with Triton: what else is there is the model's own
        ("optimization { cuda { graphs: true } }", {"enable_cuda_graph": "True"}),
        (
            accelerator("cuda", use_tf32="false", cudnn_conv_algo_search="HEURISTIC"),
            {"use_tf32": "False", "cudnn_conv_algo_search": "HEURISTIC"},
        ),
        (
            parameter("gpu_mem_limit", "100") + accelerator("cuda", gpu_mem_limit="200"),
            {"gpu_mem_limit": "200"},
        ),
    ],
)
def test_options_of_cuda(text: str, wanted: dict[str, str]) -> None:
    assert options(text) == wanted


def test_options_of_tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = accelerator(
        "tensorrt",
        precision_mode="FP16",
        max_workspace_size_bytes="1073741824",
        int8_use_native_calibration_table="0",
        trt_engine_cache_enable="1",
        trt_timing_cache_enable="0",
        trt_profile_max_shapes="x:32x5,y:32x1",
        trt_auxiliary_streams="-1",
    )
    assert options(text, TENSORRT_PROVIDER) == {
        "trt_fp16_enable": "True",
        "trt_max_workspace_size": "1073741824",
        "trt_int8_use_native_calibration_table": "False",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(tmp_path / "headrace" / "tensorrt"),
        "trt_timing_cache_enable": "False",
        "trt_profile_max_shapes": "x:32x5,y:32x1",
        "trt_auxiliary_streams": "-1",
    }
    assert options(text) == {}  # CUDA is behind it, for what TensorRT does not run
    assert options(accelerator("tensorrt"), TENSORRT_PROVIDER) == {}
    plain = accelerator("tensorrt", precision_mode="FP32", trt_engine_cache_enable="true")
    assert "trt_fp16_enable" not in options(plain, TENSORRT_PROVIDER)
    monkeypatch.delenv("XDG_CACHE_HOME")
    path = options(plain, TENSORRT_PROVIDER)["trt_engine_cache_path"]
    assert path == str(Path.home() / ".cache" / "headrace" / "tensorrt")


@pytest.mark.parametrize("offered", [PLAIN, ALL], ids=["here", "with-gpus"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (parameter("gpu_mem_limit", "much"), ["gpu_mem_limit", "whole number", "got much"]),
        (parameter("gpu_mem_limit", "0"), ["gpu_mem_limit", "from 1"]),
        (parameter("arena_extend_strategy", "2"), ["kNextPowerOfTwo, kSameAsRequested", "got 2"]),
        (parameter("enable_cuda_graph", "yes"), ["enable_cuda_graph", "0, 1, false or true"]),
        (accelerator("cuda", gpu_external_alloc="1"), ["gpu_external_alloc", "docs/gpu.md"]),
        (accelerator("cuda", user_compute_stream="1"), ["user_compute_stream"]),
        (accelerator("cuda", device_id="1"), ["device_id"]),
        (accelerator("tensorrt", precision_mode="FP8"), ["FP32, FP16, BF16, INT8", "got FP8"]),
        (accelerator("tensorrt", trt_extra_plugin_lib_paths="x.so"), ["trt_extra_plugin_lib"]),
        (accelerator("tensorrt", trt_engine_cache_path="x"), ["trt_engine_cache_path"]),
        (accelerator("tensorrt", trt_tactic_sources="a b"), ["letters, digits"]),
        (accelerator("tensorrt", trt_builder_optimization_level="6"), ["from 0 to 5"]),
        (accelerator("auto_mixed_precision"), ["unknown Execution Accelerator", "cuda, tensorrt"]),
        (accelerator("tensorrt") + parameter("enable_cuda_graph", "1"), ["not for", "TensorRT"]),
        (
            "max_batch_size: 8 optimization { cuda { graph_spec { batch_size: 9 } } }",
            ["graph_spec", "1 to 8", "got 9"],
        ),
        ("optimization { cuda { graph_spec { } } }", ["graph_spec", "got 0"]),
        (
            'optimization { cuda { graph_spec { batch_size: 1 input { key: "x" value { } } } } }',
            ["graph_spec", "inputs"],
        ),
        (
            "max_batch_size: 8 optimization { cuda { "
            + "graph_spec { batch_size: 1 } " * 33
            + "} }",
            ["too many", "at most 32"],
        ),
    ],
)
def test_an_option_that_is_wrong_is_refused_wherever_the_model_would_run(
    offered: list[str], text: str, words: list[str]
) -> None:
    message = refused(text, offered)
    assert all(word in message for word in words), message


@given(st.sampled_from(["gpu_mem_limit", "arena_extend_strategy", "enable_cuda_graph"]), st.text())
def test_whatever_a_value_is_it_is_told_as_a_known_word_or_refused(name: str, value: str) -> None:
    config = config_of(ON_GPU)
    config.parameters[name].string_value = value
    try:
        placement = placement_of(config, CUDA, lambda: 1)
    except FailedPreconditionError:
        return
    assert placement is not None
    told = placement.devices[0].providers[0][1][name]
    assert told.isascii()
    assert told.isalnum()


# CUDA graphs.


def test_the_sizes_of_its_graphs_are_those_of_graph_spec() -> None:
    graphs = "optimization { cuda { graphs: true graph_spec [{ batch_size: 4 }, { batch_size: 1 }]"
    placement = placed(f"max_batch_size: 8 {graphs} }} }}")
    assert placement is not None
    assert (placement.graphs, placement.buckets) == (True, (4, 1))
    assert placed("max_batch_size: 8") == placed("max_batch_size: 8 optimization { cuda { } }")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "max_batch_size of 1"),
        ('max_batch_size: 4 input { name: "x" dims: [ 3, -1 ] }', "'x'"),
    ],
)
def test_what_has_no_fixed_shapes_has_no_graphs(text: str, words: str) -> None:
    with pytest.raises(FailedPreconditionError, match=words):
        check_for_graphs(config_of(text))
    check_for_graphs(config_of('max_batch_size: 4 input { name: "x" dims: [ 3, 1 ] }'))
