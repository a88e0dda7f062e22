"""Ragged batches: requests of different sizes in one run, and how a graph finds each of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from server.execution.ragged import BatchInput, Kind
from tests.server.backends.serving import Served
from tests.server.onnx_models import info, model_bytes, put

INPUT = 'input { name: "INPUT" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true }\n'
OUTPUT = 'output { name: "SUM" data_type: TYPE_FP32 dims: [ 1 ] }\n'


def batch_input(kind: str, target: str, datatype: str = "INT32", source: str = "INPUT") -> str:
    return (
        f'batch_input {{ kind: BATCH_{kind} target_name: "{target}" '
        f'data_type: TYPE_{datatype} source_input: "{source}" }}\n'
    )


def sums() -> bytes:
    """The sum of each request's elements, between the ENDS of Triton's guide (FP32)."""
    nodes = [
        helper.make_node("CumSum", ["INPUT", "first_axis"], ["sums"]),
        helper.make_node("Cast", ["ENDS"], ["ends"], to=TensorProto.INT64),
        helper.make_node("Sub", ["ends", "one"], ["last"]),
        helper.make_node("Gather", ["sums", "last"], ["up_to"]),
        helper.make_node("Slice", ["up_to", "zero", "minus_one"], ["before"]),
        helper.make_node("Concat", ["nothing", "before"], ["from"], axis=0),
        helper.make_node("Sub", ["up_to", "from"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "one_axis"], ["SUM"]),
    ]
    constants: dict[str, Any] = {
        "first_axis": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "zero": np.array([0], np.int64),
        "minus_one": np.array([-1], np.int64),
        "nothing": np.zeros(1, np.float32),
        "one_axis": np.array([1], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "sums",
        [info("INPUT", TensorProto.FLOAT, [None]), info("ENDS", TensorProto.FLOAT, [None])],
        [info("SUM", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return model_bytes(graph)


def shapes() -> bytes:
    """What the graph is told, as it is: COUNT and ITEMS of a batch."""
    graph = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["COUNT", "axis"], ["COUNTS"]),
            helper.make_node("Identity", ["ITEMS"], ["SHAPES"]),
            helper.make_node("ReduceSum", ["INPUT"], ["unused"]),
        ],
        "shapes",
        [
            info("INPUT", TensorProto.FLOAT, [None]),
            info("COUNT", TensorProto.INT32, [None]),
            info("ITEMS", TensorProto.INT32, [None, 2]),
        ],
        [
            info("COUNTS", TensorProto.INT32, [None, 1]),
            info("SHAPES", TensorProto.INT32, [None, 2]),
        ],
        [numpy_helper.from_array(np.array([1], np.int64), "axis")],
    )
    return model_bytes(graph)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("ragged")
    guide = batch_input("ACCUMULATED_ELEMENT_COUNT", "ENDS", "FP32")
    put(root, "sums", sums(), config="max_batch_size: 16\n" + INPUT + OUTPUT + guide)
    put(
        root,
        "shapes",
        shapes(),
        config="max_batch_size: 16\n"
        + INPUT.replace("[ -1 ]", "[ -1, -1 ]")
        + batch_input("ELEMENT_COUNT", "COUNT")
        + batch_input("ITEM_SHAPE", "ITEMS"),
    )
    with Served(root) as served:
        yield served


def test_requests_of_different_sizes_run_as_one_batch(served: Served) -> None:
    counted = served.repository.get("sums").statistics
    before = counted.execution_count
    requests = [np.arange(size, dtype=np.float32)[None] for size in (3, 4, 5)]
    found = served.infers("sums", [{"INPUT": array} for array in requests])
    assert [answer["SUM"].tolist() for answer in found] == [[[3]], [[6]], [[10]]]
    assert counted.execution_count - before == 1
    assert 3 in counted.batches


def test_a_graph_is_told_counts_and_shapes(served: Served) -> None:
    requests = [np.zeros((1, *shape), np.float32) for shape in ((3, 1), (2, 2), (4, 5))]
    found = served.infers("shapes", [{"INPUT": array} for array in requests])
    assert [answer["COUNTS"].tolist() for answer in found] == [[[3]], [[4]], [[20]]]
    assert [answer["SHAPES"].tolist() for answer in found] == [[[3, 1]], [[2, 2]], [[4, 5]]]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Kind.COUNT, [6, 4]),
        (Kind.ACCUMULATED, [6, 10]),
        (Kind.ACCUMULATED_WITH_ZERO, [0, 6, 10]),
        (Kind.MAX_AS_SHAPE, [0] * 6),
        (Kind.ITEM_SHAPE, [[3, 1], [3, 1], [2, 2]]),
        (Kind.ITEM_SHAPE_FLATTEN, [3, 1, 3, 1, 2, 2]),
    ],
)
@pytest.mark.parametrize("datatype", ["int32", "float32"])
def test_the_kinds_as_triton_s_own_comments_have_them(
    kind: Kind, expected: list[Any], datatype: str
) -> None:
    """A request of two rows [3, 1] and one of a row [2, 2]."""
    entry = BatchInput("B", kind, "INPUT", np.dtype(datatype))
    found = entry.tensor(np.array([6, 4]), np.array([[3, 1], [3, 1], [2, 2]]))
    assert found.dtype == datatype
    assert found.tolist() == expected


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20))
def test_counts_add_up(counts: list[int]) -> None:
    def of(kind: Kind) -> Any:
        entry = BatchInput("B", kind, "INPUT", np.dtype(np.int32))
        return entry.tensor(np.array(counts), np.zeros((len(counts), 1), np.int64))

    ends, bounds = of(Kind.ACCUMULATED), of(Kind.ACCUMULATED_WITH_ZERO)
    assert bounds.tolist() == [0, *ends.tolist()]
    assert np.diff(bounds).tolist() == counts == of(Kind.COUNT).tolist()
    assert of(Kind.MAX_AS_SHAPE).shape == (max(counts),)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (INPUT + batch_input("ELEMENT_COUNT", "ENDS", "INT64"), "data_type of a batch_input"),
        (INPUT + batch_input("ELEMENT_COUNT", "ENDS"), "data_type of input 'ENDS' differs"),
        (INPUT + batch_input("ELEMENT_COUNT", "NONE", "FP32"), "no input 'NONE'"),
        (INPUT + batch_input("ITEM_SHAPE", "ENDS", "FP32"), "dims of input 'ENDS' differ"),
        (
            INPUT + batch_input("ELEMENT_COUNT", "ENDS", "FP32", "OTHER"),
            "unknown source input name",
        ),
        (INPUT + "batch_input { data_type: TYPE_FP32 }", "expects 1 source input"),
        (
            INPUT + 'batch_input { data_type: TYPE_FP32 source_input: "INPUT" }',
            "has no target_name",
        ),
        (INPUT, "an input of the graph is not listed"),
        (INPUT + "sequence_batching { }", "ragged batches of sequences"),
    ],
)
def test_a_configuration_that_makes_no_batches_says_why(
    tmp_path: Path, config: str, text: str
) -> None:
    put(tmp_path, "m", sums(), config="max_batch_size: 4\n" + config + OUTPUT)
    with Served(tmp_path) as served:
        assert text in served.reason("m")


def test_a_graph_with_dimensions_is_not_ragged(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["INPUT", "axes"], ["SUM"])],
        "matrix",
        [info("INPUT", TensorProto.FLOAT, [None, None])],
        [info("SUM", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )
    put(tmp_path, "m", model_bytes(graph), config="max_batch_size: 4\n" + INPUT + OUTPUT)
    with Served(tmp_path) as served:
        assert "'INPUT' is ragged, the graph's is not" in served.reason("m")
