"""The sessions of devices, held against a plain one. Here their device is the CPU."""

from __future__ import annotations

import gc
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from headrace.errors import FailedPreconditionError, InternalError
from server.execution.device_session import DeviceSession, open_session
from server.execution.devices import (
    CPU_PROVIDERS,
    CUDA_PROVIDER,
    CaptureGate,
    Device,
    Placement,
)
from server.execution.session import Session
from server.execution.watchdog import RunStoppedError, Watchdog
from tests.server.execution.trees.forests import classifier, forest
from tests.server.onnx_models import (
    add_model,
    endless_model,
    gather_model,
    identity_model,
    info,
    mixing_model,
    mlp_model,
    model_bytes,
)

CPU = Device("cpu", 0, CPU_PROVIDERS)
BOUND, TWICE = Placement((CPU,)), Placement((CPU, CPU))
GRAPHS = Placement((CPU,), graphs=True)
ROWS_MAX = 12


def captured(model: bytes, examples: list[np.ndarray], placement: Placement) -> DeviceSession:
    session = DeviceSession(model, Path(), placement)
    session.capture(examples, ROWS_MAX)
    return session


def rows_of(rows: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 5)).astype(np.float32)


def half_model() -> bytes:
    """y = x · 2, FLOAT16 [N, 3], and which of them are positive."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("Greater", ["x", "zero"], ["positive"]),
    ]
    zero = helper.make_tensor("zero", TensorProto.FLOAT16, [], [0.0])
    outputs = [
        info("y", TensorProto.FLOAT16, ["N", 3]),
        info("positive", TensorProto.BOOL, ["N", 3]),
    ]
    inputs = [info("x", TensorProto.FLOAT16, ["N", 3])]
    return model_bytes(helper.make_graph(nodes, "half", inputs, outputs, [zero]))


@pytest.mark.parametrize("placement", [BOUND, TWICE], ids=["one", "two"])
@pytest.mark.parametrize("rows", [0, 1, 3, 33])
def test_a_bound_run_answers_as_a_plain_one(placement: Placement, rows: int) -> None:
    feeds = [rows_of(rows)]
    (wanted,) = Session(mlp_model(5), Path()).run(feeds)
    (found,) = DeviceSession(mlp_model(5), Path(), placement).run(feeds)
    assert np.array_equal(found, wanted)
    assert found.dtype == wanted.dtype


def test_inputs_that_are_views_are_bound_as_what_they_show() -> None:
    session = DeviceSession(add_model(), Path(), BOUND)
    left = np.arange(40, dtype=np.int32).reshape(4, 10)[:, ::2][:, :4]
    right = np.asfortranarray(np.full((4, 4), 100, np.int32))
    total, difference = session.run([left, right])
    assert np.array_equal(total, left + right)
    assert np.array_equal(difference, left - right)


def test_text_and_bfloat16_come_as_from_a_plain_session() -> None:
    text = np.array([["a", "ß"]], object)
    assert DeviceSession(identity_model(), Path(), BOUND).run([text])[0].tolist() == text.tolist()
    model = identity_model(TensorProto.BFLOAT16, ["N", 2])
    bits = np.array([[16256, 7], [1, 65535]], np.uint16)
    assert np.array_equal(DeviceSession(model, Path(), BOUND).run([bits])[0], bits)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, ROWS_MAX + 3), min_size=1, max_size=12), st.booleans())
def test_a_batch_in_a_bucket_answers_as_a_plain_one(sizes: list[int], preferred: bool) -> None:
    placement = Placement((CPU,), graphs=True, buckets=(3, 7) if preferred else ())
    session = captured(mlp_model(5), [np.zeros((1, 5), np.float32)], placement)
    plain = Session(mlp_model(5), Path())
    before: list[tuple[np.ndarray, np.ndarray]] = []
    for seed, rows in enumerate(sizes):
        feeds = [rows_of(rows, seed)]
        (found,), (wanted,) = session.run(feeds), plain.run(feeds)
        assert np.array_equal(found, wanted)
        before.append((found, wanted))
    # No later run has written into what an earlier one was answered.
    assert all(np.array_equal(found, wanted) for found, wanted in before)


def test_several_inputs_and_outputs_of_other_types_go_into_buckets() -> None:
    zeros = np.zeros((1, 4), np.int32)
    session = captured(add_model(), [zeros, zeros], GRAPHS)
    left = np.arange(20, dtype=np.int32).reshape(5, 4)
    total, difference = session.run([left, left[::-1]])
    assert np.array_equal(total, left + left[::-1])
    assert np.array_equal(difference, left - left[::-1])
    halves = np.array([[1.5, -2, 0]], np.float16)
    session = captured(half_model(), [np.zeros((1, 3), np.float16)], GRAPHS)
    doubled, positive = session.run([halves])
    assert (doubled.dtype, doubled.tolist()) == (np.float16, [[3, -4, 0]])
    assert positive.tolist() == [[True, False, False]]


def test_many_threads_get_their_own_rows() -> None:
    session = captured(mlp_model(5), [np.zeros((1, 5), np.float32)], GRAPHS)
    plain = Session(mlp_model(5), Path())

    def ask(seed: int) -> bool:
        feeds = [rows_of(1 + seed % ROWS_MAX, seed)]
        return np.array_equal(session.run(feeds)[0], plain.run(feeds)[0])

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(ask, range(400)))


def test_what_cannot_be_a_graph_is_refused_with_its_reason() -> None:
    pair = np.zeros((1, 2), np.float32)
    with pytest.raises(FailedPreconditionError, match="'sum' has not a row for each row"):
        captured(mixing_model(), [pair], GRAPHS)
    text = np.zeros((1, 2), object)
    with pytest.raises(FailedPreconditionError, match="text or BF16"):
        captured(identity_model(), [text], GRAPHS)


def test_a_model_that_does_not_load_for_graphs_says_that_they_were_wanted() -> None:
    for placement, words in ((BOUND, "not an ONNX model"), (GRAPHS, "leave out enable_cuda_graph")):
        with pytest.raises(FailedPreconditionError, match=words) as caught:
            DeviceSession(b"no model", Path(), placement)
        assert caught.value.__cause__ is not None


def test_its_thread_goes_with_it() -> None:
    before = set(threading.enumerate())
    session = captured(mlp_model(5), [np.zeros((1, 5), np.float32)], GRAPHS)
    (own,) = set(threading.enumerate()) - before
    del session
    gc.collect()
    own.join(10)
    assert not own.is_alive()


def test_what_refuses_zeros_is_refused() -> None:
    nodes = [
        helper.make_node("Sub", ["x", "seven"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["value"]),
    ]
    tensors = [
        helper.make_tensor("table", TensorProto.FLOAT, [2], [1.0, 2.0]),
        helper.make_tensor("seven", TensorProto.INT64, [], [7]),
    ]
    graph = helper.make_graph(
        nodes, "seven", [info("x", TensorProto.INT64, ["N"])],
        [info("value", TensorProto.FLOAT, ["N"])], tensors,
    )  # fmt: skip
    with pytest.raises(FailedPreconditionError, match="of zeros fails"):
        captured(model_bytes(graph), [np.zeros(1, np.int64)], GRAPHS)


@pytest.mark.parametrize("placement", [BOUND, GRAPHS], ids=["bound", "graphs"])
def test_values_that_the_graph_refuses_are_an_error_of_this_run_only(placement: Placement) -> None:
    session = DeviceSession(gather_model(), Path(), placement)
    session.capture([np.zeros(1, np.int64)], ROWS_MAX)
    with pytest.raises(InternalError) as caught:
        session.run([np.array([99], np.int64)])
    assert caught.value.__cause__ is not None
    assert session.run([np.array([3, 1, 2], np.int64)])[0].tolist() == [3, 1, 2]


@pytest.mark.parametrize("placement", [BOUND, GRAPHS], ids=["bound", "graphs"])
def test_a_run_that_does_not_end_is_ended(placement: Placement) -> None:
    watchdog = Watchdog(run_max_s=0.2)
    session = DeviceSession(endless_model(), Path(), placement, watched_by=watchdog)
    for _ in range(2):
        with pytest.raises(RunStoppedError):
            session.run([np.array([-1.0], np.float32)])
        assert session.run([np.array([3.0], np.float32)])[0].tolist() == [3.0]
    assert not watchdog.runs


def test_memory_is_given_back_but_for_what_graphs_are_bound_to() -> None:
    for placement in (BOUND, GRAPHS):
        session = captured(mlp_model(5), [np.zeros((1, 5), np.float32)], placement)
        session.shrink_due = True
        session.run([rows_of(3)])
        assert session.shrink_due == placement.graphs


def test_a_device_that_onnxruntime_cannot_use_is_refused_unless_the_cpu_will_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    missing = Device("cuda", 0, ((CUDA_PROVIDER, {"device_id": "4095"}), *CPU_PROVIDERS))
    wanted = Placement((missing,))
    # A build without CUDA warns that it does not know the provider.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FailedPreconditionError) as caught:
            open_session(mlp_model(5), Path(), 1, wanted)
        assert caught.value.mend
        session = open_session(mlp_model(5), Path(), 1, Placement((missing,), optional=True))
    assert type(session) is Session
    assert "runs on the CPU" in caplog.text
    assert session.run([rows_of(2)])[0].shape == (2, 1)


def test_trees_stay_on_the_cpu_where_they_may() -> None:
    trees = classifier(forest(1, [7, 7]), [0, 1])
    assert type(open_session(trees, Path(), 1, Placement((CPU,), optional=True))) is Session
    assert type(open_session(trees, Path(), 1, BOUND)) is DeviceSession
    assert type(open_session(trees, Path(), 1, None)) is Session


def test_a_capture_is_alone() -> None:
    gate = CaptureGate()
    began, may_end, captured_now = threading.Event(), threading.Event(), threading.Event()
    order: list[str] = []

    def run() -> None:
        with gate.beside():
            began.set()
            may_end.wait(10)
            order.append("run")

    def capture() -> None:
        began.wait(10)
        with gate.alone():
            order.append("capture")
        captured_now.set()

    def late() -> None:
        captured_now.wait(10)
        with gate.beside(), gate.beside():
            order.append("late")

    threads = [threading.Thread(target=work) for work in (run, capture, late)]
    for thread in threads:
        thread.start()
    assert began.wait(10)
    may_end.set()
    for thread in threads:
        thread.join(10)
    assert order == ["run", "capture", "late"]
