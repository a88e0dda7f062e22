"""Silero's voice activity detector as sequences of audio: what its own package computes.

The package brings the graph; its Python part wants torch, so the oracle is that part again in NumPy
(`OnnxWrapper` of silero_vad 6: 512 new samples behind 64 of the chunk before, and the state).
"""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.server.backends.serving import Served, outputs
from tests.server.onnx_models import put
from tests.server.sequence_models import batching

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("silero_vad") is None,
        reason="no silero-vad: requirements/models.lock is not installed",
    ),
]
RATE = 16_000
CHUNK, CONTEXT = 512, 64
STREAMS, CHUNKS = 24, 60
Array = np.ndarray[Any, Any]
OLDEST = "max_sequence_idle_microseconds: 60000000\noldest { max_candidate_sequences: 16 }\n"


def graph_of(name: str) -> Path:
    spec = find_spec("silero_vad")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data" / name


def audio(seed: int) -> Array:
    """Voiced bursts of a quarter to a whole second, with silence and hiss between them."""
    random = np.random.default_rng(seed)
    parts: list[Array] = []
    while sum(map(len, parts)) < CHUNKS * CHUNK:
        time_s = np.arange(int(random.uniform(0.25, 1.0) * RATE)) / RATE
        pitch_hz = random.uniform(90, 220) * (1 + 0.05 * np.sin(2 * np.pi * 5 * time_s))
        phase = 2 * np.pi * np.cumsum(pitch_hz) / RATE
        formants_hz = random.uniform([300, 900, 2200], [800, 2000, 3000])
        voice = np.zeros_like(time_s)
        for harmonic in range(1, 30):
            near = np.exp(-(((harmonic * pitch_hz.mean() - formants_hz[:, None]) / 150) ** 2))
            voice += (near.sum() + 0.02) * np.sin(harmonic * phase)
        syllables = 0.5 - 0.5 * np.cos(2 * np.pi * 4 * time_s)
        parts.append(0.3 * syllables * voice / np.abs(voice).max())
        parts.append(np.zeros(int(random.uniform(0.1, 0.5) * RATE)))
    sound = np.concatenate(parts)[: CHUNKS * CHUNK]
    sound += random.normal(0, 0.002, len(sound))
    return sound.astype(np.float32).reshape(CHUNKS, 1, CHUNK)


def with_contexts(chunks: Array) -> list[Array]:
    """Return every chunk behind the end of the one before, as the graph wants it."""
    context = np.zeros((1, CONTEXT), np.float32)
    found = []
    for chunk in chunks:
        found.append(np.concatenate([context, chunk], axis=1))
        context = found[-1][:, -CONTEXT:]
    return found


def package_run(session: onnxruntime.InferenceSession, chunks: Array) -> list[float]:
    """Return the speech probability of each chunk, one after another."""
    state = np.zeros((2, 1, 128), np.float32)
    found = []
    for samples in with_contexts(chunks):
        feeds = {"input": samples, "state": state, "sr": np.array(RATE, np.int64)}
        probability, state = session.run(None, feeds)
        found.append(float(probability[0, 0]))
    return found


def batched(path: Path) -> bytes:
    """The graph with the streams in front of its state, its own context, and its rate fixed."""
    model = onnx.load(path)
    graph = model.graph
    kept = [node for node in graph.input if node.name not in {"input", "state", "sr"}]
    nodes = [
        helper.make_node("Concat", ["CONTEXT", "CHUNK"], ["input"], axis=1),
        helper.make_node("Slice", ["input", "from", "to", "axis"], ["NEXT_CONTEXT"]),
        helper.make_node("Transpose", ["STATE"], ["state"], perm=[1, 0, 2]),
        *graph.node,
        helper.make_node("Transpose", ["stateN"], ["NEXT_STATE"], perm=[1, 0, 2]),
    ]
    constants = {"from": [-CONTEXT], "to": [1 << 30], "axis": [1]}
    kind = TensorProto.FLOAT

    def info(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, ["streams", *shape])

    whole = helper.make_graph(
        nodes,
        "silero",
        [*kept, info("CHUNK", CHUNK), info("CONTEXT", CONTEXT), info("STATE", 2, 128)],
        [info("output", 1), info("NEXT_CONTEXT", CONTEXT), info("NEXT_STATE", 2, 128)],
        [
            *graph.initializer,
            numpy_helper.from_array(np.array(RATE, np.int64), "sr"),
            *(numpy_helper.from_array(np.array(value), name) for name, value in constants.items()),
        ],
    )
    made = helper.make_model(whole, opset_imports=model.opset_import, ir_version=model.ir_version)
    return made.SerializeToString()


def state(name: str, output: str, dims: str, first: str) -> str:
    return (
        f'state {{ input_name: "{name}" output_name: "{output}" data_type: TYPE_FP32 '
        f'dims: [ {dims} ] initial_state {{ name: "silence" data_type: TYPE_FP32 '
        f"dims: [ {first} ] zero_data: true }} }}\n"
    )


async def probabilities(served: Served, model: str, name: str, feeds: list[Any]) -> list[float]:
    found = []
    for place, inputs in enumerate(feeds):
        flags = {"sequence_start": place == 0, "sequence_end": place == len(feeds) - 1}
        answer = await served.answer(model, inputs, parameters={"sequence_id": name, **flags})
        found.append(float(outputs(answer)["output"][0, 0]))
    return found


async def all_streams(served: Served, model: str, feeds: list[list[Any]]) -> list[list[float]]:
    return await asyncio.gather(
        *(probabilities(served, model, f"stream {at}", its) for at, its in enumerate(feeds))
    )


@pytest.fixture(scope="module")
def streams() -> list[Array]:
    return [audio(seed) for seed in range(STREAMS)]


@pytest.mark.parametrize("name", ["silero_vad.onnx", "silero_vad_16k_op15.onnx"])
def test_the_package_s_own_graph(tmp_path: Path, streams: list[Array], name: str) -> None:
    path = graph_of(name)
    put(
        tmp_path,
        "vad",
        path.read_bytes(),
        config=batching(OLDEST + state("state", "stateN", "2, -1, 128", "2, 1, 128"), batch=0)
        + 'input { name: "input" data_type: TYPE_FP32 dims: [ -1, -1 ] }\n'
        + 'input { name: "sr" data_type: TYPE_INT64 }\n'
        + 'output { name: "output" data_type: TYPE_FP32 dims: [ -1, 1 ] }',
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rate = np.array(RATE, np.int64)
    feeds = [
        [{"input": samples, "sr": rate} for samples in with_contexts(chunks)] for chunks in streams
    ]
    with Served(tmp_path) as served:
        found = served.run(all_streams(served, "vad", feeds))
    expected = [package_run(session, chunks) for chunks in streams]
    assert np.ptp(expected) > 0.5  # it hears the bursts
    assert np.abs(np.array(found) - np.array(expected)).max() <= 1e-6


@pytest.mark.parametrize("strategy", [OLDEST, "max_sequence_idle_microseconds: 60000000\n"])
def test_streams_that_run_as_batches(tmp_path: Path, streams: list[Array], strategy: str) -> None:
    path = graph_of("silero_vad_16k_op15.onnx")
    put(
        tmp_path,
        "vad",
        batched(path),
        config=batching(
            strategy
            + state("CONTEXT", "NEXT_CONTEXT", str(CONTEXT), str(CONTEXT))
            + state("STATE", "NEXT_STATE", "2, 128", "2, 128")
        )
        + f'input {{ name: "CHUNK" data_type: TYPE_FP32 dims: [ {CHUNK} ] }}\n'
        + 'output { name: "output" data_type: TYPE_FP32 dims: [ 1 ] }',
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with Served(tmp_path) as served:
        feeds = [[{"CHUNK": chunk} for chunk in chunks] for chunks in streams]
        found = served.run(all_streams(served, "vad", feeds))
        batches = served.repository.get("vad").statistics.batches
    expected = [package_run(session, chunks) for chunks in streams]
    assert np.abs(np.array(found) - np.array(expected)).max() <= 1e-6
    assert max(batches) > 1
