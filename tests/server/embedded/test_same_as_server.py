"""A Predictor against a real server: the same bundle, the same events, the same bits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import lightgbm as lgb
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from features import Column, FeatureBatch
from features.online.store import OnlineStore
from features.snapshots.file import write_snapshot
from features.snapshots.from_store import rows_of_store
from server.embedded import Predictor
from server.pb import headrace_pb2 as pb
from server.protocol.columns import messages_of_table
from tests.features.snapshots.test_taking import events
from tests.server.serving import (
    SERVICE_SCHEMA_ID,
    plan,
    start_worker,
    unary,
    write_plain_version,
    write_version,
)
from tests.support.rides import DEFINITIONS, HOUR_US, MINUTE_US, NOON_US, asked, ingesting
from tests.support.valkey import running_valkey
from trainer.export import forest_to_onnx
from trainer.trees import read_forest, to_single_precision

pytestmark = pytest.mark.slow

SERVICE = DEFINITIONS.service("tips")
VIEWS = [entry.view for entry in SERVICE.views]
END_US = NOON_US + 8 * HOUR_US
# Missing entities and nulls among them; then a value that has expired, windows that are behind
# what is stored, and windows that are long over.
QUESTIONS = asked(
    *[
        (driver, city, distance)
        for driver in (1, 2, 3, 4, 404, None)
        for city in ("Oslo", "Bern", None)
        for distance in (2.5, 0.0, float("nan"))
    ]
)
TIMES_US = [
    END_US,
    END_US + 17 * MINUTE_US,
    END_US + 12 * HOUR_US,
    NOON_US,
    END_US + 30 * 24 * HOUR_US,
]


def write_trees(root: Path) -> str:
    """Write a bundle of boosted trees over the service's features; return its digest."""
    width = len(SERVICE.columns)
    random = np.random.default_rng(5)
    values = random.lognormal(3.0, 2.5, (2000, width))
    matrix = np.where(random.random(values.shape) > 0.2, values, 0.0).astype(np.float32)
    totals = np.log1p(matrix) @ random.random(width)
    labels = totals > np.quantile(totals, 0.2)  # what is asked has many zeros
    booster = lgb.train(
        {"objective": "binary", "num_leaves": 15, "verbosity": -1, "deterministic": True},
        lgb.Dataset(matrix, labels),
        30,
    )
    text = to_single_precision(booster.model_to_string())
    model = forest_to_onnx(read_forest(text), "trees").SerializeToString()
    return write_version(root, "trees", model=model)


@dataclass
class Served:
    """A server's channel, and the folder of its bundles, with a snapshot beside them."""

    channel: grpc.Channel
    root: Path

    def ask(self, path: str, request: Any, reply: Any) -> Any:
        return unary(self.channel, path, request, reply, timeout_s=10)

    def predict(self, model: str, table: dict[str, Column], **fields: Any) -> Any:
        request = pb.PredictRequest(model=model, inputs=messages_of_table(table), **fields)
        return self.ask("/headrace.v1.Predictions/Predict", request, pb.PredictReply)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    data, root = tmp_path_factory.mktemp("d"), tmp_path_factory.mktemp("bundles")
    versions = {
        "tips": write_version(root),
        "plain": write_plain_version(root),
        "trees": write_trees(root),
    }
    with running_valkey() as valkey:
        asyncio.run(fill(valkey.url, root / "features.snapshot"))
        config = {
            "registry": f"file://{root}",
            "redis": valkey.url,
            "replay_scope": True,
            "plan": plan(1, **{name: [(each, "live", 1.0)] for name, each in versions.items()}),
        }
        with start_worker(data, **config) as worker:
            assert worker.event("plan")["applied"]
            channel = grpc.insecure_channel(worker.event("ready")["grpc"])
            yield Served(channel, root)
            channel.close()
            assert worker.end() == 0, worker.errors


async def fill(url: str, snapshot: Path) -> None:
    async with ingesting(url) as rig:
        offset = ""
        for batch in events():
            offset = await rig.log.push([batch])
        await rig.read(QUESTIONS, END_US, offset)
        store = OnlineStore(url)
        write_snapshot(snapshot, await rows_of_store(store, VIEWS, END_US))
        await store.close()


@pytest.fixture(scope="module")
def tips(served: Served) -> Iterator[Predictor]:
    with Predictor(served.root / "tips-1", served.root / "features.snapshot") as predictor:
        yield predictor


@pytest.fixture(scope="module")
def trees(served: Served) -> Iterator[Predictor]:
    with Predictor(served.root / "trees-1", served.root / "features.snapshot") as predictor:
        yield predictor


def listed(table: dict[str, Column]) -> dict[str, list[object]]:
    """A table as a caller of Python has it."""
    return {
        name: [v if ok else None for v, ok in zip(column.values.tolist(), column.mask, strict=True)]
        for name, column in table.items()
    }


@pytest.mark.parametrize("t_us", TIMES_US)
@pytest.mark.parametrize("name", ["tips", "trees"])
def test_predictions_decisions_features_and_statuses(
    served: Served, name: str, t_us: int, request: pytest.FixtureRequest
) -> None:
    predictor: Predictor = request.getfixturevalue(name)
    reply = served.predict(name, QUESTIONS, event_time=t_us, return_features=True)
    answer = predictor.predict(listed(QUESTIONS), event_time=t_us)
    assert answer.outputs.tobytes() == np.array(reply.outputs, np.float32).tobytes()
    assert answer.decisions == list(reply.decisions)
    assert isinstance(answer.features, FeatureBatch)
    assert answer.features.pack(SERVICE_SCHEMA_ID) == list(reply.features)
    table = messages_of_table(QUESTIONS)
    get = pb.GetFeaturesRequest(service="tips", inputs=table, event_time=t_us)
    features = served.ask("/headrace.v1.Features/GetFeatures", get, pb.GetFeaturesReply)
    assert answer.features.status.tobytes() == features.status
    alone = predictor.get_features(listed(QUESTIONS), event_time=t_us)
    assert alone.status.tobytes() == features.status
    assert set(reply.versions) == {predictor.digest}


def test_the_questions_have_many_answers_and_every_status(trees: Predictor) -> None:
    answer = trees.predict(listed(QUESTIONS), event_time=END_US)
    assert len(np.unique(answer.outputs)) > 5
    assert set(answer.decisions) == {"low", "high"}
    found: set[int] = set()
    for t_us in TIMES_US:
        batch = trees.get_features(listed(QUESTIONS), event_time=t_us)
        found |= set(batch.status.ravel().tolist())
    assert found == {0, 1, 2, 3}


def test_a_row_has_the_bits_that_it_has_among_others(trees: Predictor) -> None:
    rows = listed(QUESTIONS)
    together = trees.predict(rows, event_time=END_US).outputs
    for row in range(len(together)):
        one = {name: [values[row]] for name, values in rows.items()}
        assert trees.predict(one, event_time=END_US).outputs.tobytes() == together[row].tobytes()


@pytest.mark.parametrize(("name", "method"), [("tips", "permutation"), ("trees", "tree_shap")])
def test_explanations(
    served: Served, name: str, method: str, request: pytest.FixtureRequest
) -> None:
    predictor: Predictor = request.getfixturevalue(name)
    few = {column: values.take(np.arange(6)) for column, values in QUESTIONS.items()}
    reply = served.predict(name, few, event_time=END_US, explain=True)
    answer = predictor.predict(listed(few), event_time=END_US, explain=True)
    for ours, theirs in zip(answer.explanations, reply.explanations, strict=True):
        assert (ours.method, ours.features) == (method, list(theirs.features))
        assert ours.method == theirs.method
        assert ours.values.ravel().tolist() == list(theirs.attributions)
        assert ours.base.tolist() == list(theirs.base)
        errors = [] if ours.errors is None else ours.errors.ravel().tolist()
        assert errors == list(theirs.errors)


def test_a_model_without_a_feature_service(served: Served) -> None:
    values = np.linspace(-3, 3, 41).astype(np.float32)
    column = {"x": Column(values.astype(np.float64))}
    request = service_pb2.ModelInferRequest(
        model_name="plain",
        inputs=[
            service_pb2.ModelInferRequest.InferInputTensor(
                name="x", datatype="FP32", shape=[len(values), 1]
            )
        ],
        raw_input_contents=[values.tobytes()],
    )
    inferred = served.ask(
        "/inference.GRPCInferenceService/ModelInfer", request, service_pb2.ModelInferResponse
    )
    reply = served.predict("plain", column)
    with Predictor(served.root / "plain-3") as plain:
        assert plain.predict({"x": values}).outputs.ravel().tolist() == list(reply.outputs)
        found = plain.infer({"x": values[:, None]})
    assert list(found) == ["probability"]
    assert found["probability"].tobytes() == inferred.raw_output_contents[0]


def test_many_threads_each_get_their_own_answer(trees: Predictor) -> None:
    rows = listed(QUESTIONS)
    expected = trees.predict(rows, event_time=END_US).outputs
    wrong: list[int] = []

    def ask(row: int) -> None:
        one = {name: [values[row]] for name, values in rows.items()}
        found = [trees.predict(one, event_time=END_US).outputs.tobytes() for _ in range(20)]
        wrong.extend(row for each in found if each != expected[row].tobytes())

    threads = [threading.Thread(target=ask, args=(row,)) for row in range(0, len(expected), 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
