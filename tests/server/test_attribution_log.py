"""Attributions in the log: a sample of the answers, and what was asked for."""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import lightgbm as lgb
import numpy as np
import pytest
import tritonclient.grpc as triton

from features import Column
from monitor import read_log
from monitor.schema import EXPLAINED
from server.attribution_log import ROWS_MAX, AttributionLog, LoggedRows
from server.execution.threads import RunThreads
from server.explain.explainer import Explainer
from server.models.explanations import Explanations
from server.pb import headrace_pb2 as pb
from server.protocol.columns import messages_of_table
from server.tap import Tap
from tests.server.serving import (
    plan,
    start_collector,
    start_worker,
    unary,
    write_plain_version,
    write_tree_version,
)
from tests.trainer.boosters import booster_text, rows
from trainer.bundle import Decision
from trainer.calibrators import Beta, calibrate
from trainer.export import forest_to_onnx
from trainer.scoring import onnx_predictor
from trainer.trees import read_forest, to_single_precision

TEXT = to_single_precision(booster_text())
BETA = Beta(0.5, 0.8, 0.3)
BOOSTER = lgb.Booster(model_str=TEXT)


@dataclass
class Served:
    data: Path
    ready: dict[str, Any]

    def infer(self, model: str, matrix: Any, name: str, **more: Any) -> tuple[Any, list[bytes]]:
        tensor = triton.InferInput(name, list(matrix.shape), "FP32")
        tensor.set_data_from_numpy(matrix)
        with triton.InferenceServerClient(self.ready["grpc"]) as client:
            result = client.infer(model, [tensor], **more)
        ids = result.get_response().parameters["prediction_id"].string_param
        return result, [uuid.UUID(each).bytes for each in ids.split(",")]

    def logged(self, model: str, ids: Sequence[bytes]) -> list[dict[str, Any]]:
        """Return the rows of these predictions, in their order, once all are there."""
        deadline = time.monotonic() + 30
        while True:
            log = {row["prediction_id"]: row for row in self.table(model).to_pylist()}
            if log.keys() >= set(ids):
                return [log[each] for each in ids]
            assert time.monotonic() < deadline, "the log lacks rows"
            time.sleep(0.05)

    def table(self, model: str) -> Any:
        return read_log(self.data / "log", model)

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://{self.ready['metrics']}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    data, bundles = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("bundles")
    late, half = write_tree_version(bundles, TEXT), write_tree_version(bundles, TEXT, "half")
    plain, never = write_plain_version(bundles), write_tree_version(bundles, TEXT, "never")

    calibrated = write_tree_version(
        bundles,
        TEXT,
        "calibrated",
        calibrator=BETA,
        decision=Decision(["low", "medium", "high"], rule="bands", thresholds=[0.35, 0.7]),
    )

    def all_of(version: str, share: float) -> dict[str, Any]:
        arms = [{"arm": "a", "version": version, "role": "live"}]
        return {"policy": {"kind": "single"}, "arms": arms, "log": {"explain": share}}

    collector, socket = start_collector(data)
    config = {
        "registry": f"file://{bundles}",
        "collector": socket,
        "plan": plan(
            1, late=all_of(late, 1.0), half=all_of(half, 0.5), plain=all_of(plain, 1.0),
            never=[(never, "live", 1.0)], calibrated=all_of(calibrated, 1.0),
        ),
    }  # fmt: skip
    with collector, start_worker(data, **config) as worker:
        yield Served(data, worker.event("ready"))
        assert worker.end() == 0, worker.errors


def parts(logged: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    return np.array([[*row["attributions"], *row["attribution_base"]] for row in logged])


@pytest.mark.slow
def test_a_sample_of_all_is_logged_with_lightgbms_attributions(served: Served) -> None:
    matrix = rows(150, seed=9)
    result, ids = served.infer("late", matrix, "features")
    assert result.as_numpy("explanation") is None
    logged = served.logged("late", ids)
    wanted = BOOSTER.predict(matrix, pred_contrib=True)
    assert np.abs(parts(logged) - wanted).max() < 1e-6
    assert {row["flags"] for row in logged} == {EXPLAINED}
    outputs = np.array([row["outputs"] for row in logged], np.float32)
    assert np.array_equal(outputs, result.as_numpy("probability"))
    assert served.metric("headrace_log_attributions_total") >= 150


@pytest.mark.slow
def test_half_of_them_is_the_same_half_again_and_the_others_are_logged_as_they_are(
    served: Served,
) -> None:
    matrix = rows(400, seed=10)
    _, ids = served.infer("half", matrix, "features")
    logged = served.logged("half", ids)
    explained = [row["attributions"] is not None for row in logged]
    assert 120 < sum(explained) < 280
    assert [row["flags"] == EXPLAINED for row in logged] == explained
    wanted = BOOSTER.predict(matrix[explained], pred_contrib=True)
    found = parts([row for row in logged if row["attributions"]])
    assert np.abs(found - wanted).max() < 1e-6


@pytest.mark.slow
def test_what_was_asked_for_is_logged_with_its_answer(served: Served) -> None:
    matrix = rows(5, seed=11)
    for model in ("never", "late"):
        result, ids = served.infer(model, matrix, "features", parameters={"explain": True})
        said = np.hstack([result.as_numpy("explanation"), result.as_numpy("explanation_base")])
        logged = served.logged(model, ids)
        assert np.abs(parts(logged) - said).max() < 1e-6
        assert {row["flags"] for row in logged} == {EXPLAINED}
    _, ids = served.infer("never", matrix, "features")
    assert {row["attributions"] for row in served.logged("never", ids)} == {None}


@pytest.mark.slow
def test_sampled_attributions_add_up_to_the_logged_answer(served: Served) -> None:
    request = pb.PredictRequest(
        model="plain", inputs=messages_of_table({"x": Column(np.array([0.5, -2.0, 4.0]))})
    )
    with grpc.insecure_channel(served.ready["grpc"]) as channel:
        reply = unary(channel, "/headrace.v1.Predictions/Predict", request, pb.PredictReply, 30)
    logged = served.logged("plain", list(reply.prediction_ids))
    assert parts(logged).sum(axis=1) == pytest.approx(list(reply.outputs), abs=1e-5)


@pytest.mark.slow
def test_a_calibrated_answer_is_logged_and_decided_on_and_its_raw_score_explained(
    served: Served,
) -> None:
    matrix = rows(60, seed=12)
    result, ids = served.infer("calibrated", matrix, "features")
    raw = onnx_predictor(forest_to_onnx(read_forest(TEXT), "late").SerializeToString(), 1)(matrix)
    wanted = calibrate(BETA, raw)
    assert np.abs(result.as_numpy("probability")[:, 0] - wanted).max() < 1e-6
    assert np.abs(wanted - raw).max() > 0.1
    logged = served.logged("calibrated", ids)
    outputs = np.array([row["outputs"] for row in logged], np.float32)
    assert np.array_equal(outputs, result.as_numpy("probability"))
    bands = np.digitize(outputs[:, 0].astype(np.float64), [0.35, 0.7])
    assert [row["decision"] for row in logged] == [("low", "medium", "high")[at] for at in bands]
    assert len(set(bands.tolist())) == 3
    assert np.abs(parts(logged) - BOOSTER.predict(matrix, pred_contrib=True)).max() < 1e-6


class Recorded(Tap):
    """A tap that keeps what it is handed."""

    def __init__(self) -> None:
        super().__init__(None, 0)
        self.rows: list[dict[str, Any]] = []

    def log(
        self, rows: int, constants: Mapping[str, Any], columns: Mapping[str, Sequence[Any]]
    ) -> None:
        for row in range(rows):
            own = {name: values[row] for name, values in columns.items()}
            self.rows.append({**constants, **own})


def waiting(count: int, run: Any = None, score: int | None = 0) -> LoggedRows:
    """Rows of a model whose outputs are its two inputs' sum and difference."""
    feeds = [np.arange(count * 2, dtype=np.float32).reshape(count, 2)]
    mix = np.array([[1, 1], [1, -1]], np.float32)
    explainer = Explainer(run or (lambda given: [given[0] @ mix]), score, None)
    with RunThreads(1, 1) as threads:
        explanations = Explanations(explainer, 8, threads, "m")
    ids = [bytes([row // 256, row % 256]) for row in range(count)]
    constants = {"model": "m", "flags": 2}
    return LoggedRows(constants, {"prediction_id": ids}, feeds, list(range(count)), explanations)


async def until(log: AttributionLog, done: int) -> None:
    while log.rows_explained + log.rows_skipped < done:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.01)


async def test_attributions_of_several_scores_lie_feature_by_feature() -> None:
    tap = Recorded()
    log = AttributionLog(tap)
    log.take(waiting(3))
    await until(log, 3)
    assert [row["flags"] for row in tap.rows] == [2 | EXPLAINED] * 3
    # The background is a row of zeros, and the model is linear.
    assert tap.rows[1]["attributions"] == pytest.approx([2, 2, 3, -3], abs=1e-4)
    assert tap.rows[1]["attribution_base"] == pytest.approx([0, 0], abs=1e-4)
    await log.close()
    assert len(tap.rows) == 3


async def test_more_than_may_wait_are_logged_as_they_are_and_counted() -> None:
    tap = Recorded()
    log = AttributionLog(tap)
    log.take(waiting(ROWS_MAX))
    log.take(waiting(1))
    assert log.rows_skipped == len(tap.rows) == 1
    assert "attributions" not in tap.rows[0]
    assert tap.rows[0]["flags"] == 2
    await log.close()
    assert len(tap.rows) == ROWS_MAX + 1


async def test_at_the_end_every_row_is_logged_once() -> None:
    tap = Recorded()
    log = AttributionLog(tap)
    for _ in range(3):
        log.take(waiting(20))
    await until(log, 1)
    await log.close()
    log.take(waiting(2))
    assert len(tap.rows) == 62
    explained = [row for row in tap.rows if "attributions" in row]
    assert len(explained) == log.rows_explained >= 1
    assert log.rows_explained + log.rows_skipped == 62


async def test_a_run_that_does_not_end_does_not_keep_the_end_waiting() -> None:
    tap, leave = Recorded(), threading.Event()
    log = AttributionLog(tap)
    log.take(waiting(4, lambda _: leave.wait(30)))
    log.take(waiting(3))
    try:
        await log.close()
        assert len(tap.rows) == log.rows_skipped == 7
    finally:
        leave.set()


@pytest.mark.parametrize("kind", ["fails", "cannot be explained"])
async def test_what_cannot_be_explained_is_logged_without_and_said_once(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: Any) -> Any:
        raise ValueError("secret")

    tap = Recorded()
    log = AttributionLog(tap)
    for _ in range(2):
        log.take(waiting(2, fails) if kind == "fails" else waiting(2, score=None))
    await until(log, 4)
    assert len(tap.rows) == log.rows_skipped == 4
    assert sum("lack attributions" in line.message for line in caplog.records) == 1
    log.take(waiting(1))
    await until(log, 5)
    assert log.rows_explained == 1
    await log.close()
