"""Predict, Feedback, GetFeatures and Push over real wires: worker, collector, Valkey, ingester."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest

from features import Column, FeatureBatch
from monitor import read_log, read_truth
from server.pb import headrace_pb2 as pb
from server.protocol.columns import messages_of_table
from tests.server.serving import (
    SERVICE_SCHEMA_ID,
    Process,
    plan,
    start_collector,
    start_worker,
    unary,
    write_plain_version,
    write_version,
)
from tests.support.otlp_collector import CAN_EXPORT, OtlpCollector, attributes_of
from tests.support.rides import (
    DEFINITIONS,
    HOUR_US,
    MINUTE_US,
    NOON_US,
    asked,
    ingesting,
    people,
    rides,
    shifts,
)
from tests.support.valkey import LiveValkey, running_valkey

pytestmark = pytest.mark.slow

T_US = NOON_US + 30 * MINUTE_US
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
PREDICTIONS, FEATURES = "/headrace.v1.Predictions/", "/headrace.v1.Features/"


@dataclass
class World:
    """All that runs, with clients of both wires."""

    data: Path
    bundles: Path
    worker: Process
    collector: Process
    valkey: LiveValkey
    versions: list[str]
    channel: grpc.Channel
    grpc: str
    http: str
    spans: OtlpCollector

    def call(self, path: str, request: Any, reply: Any, timeout_s: float = 10.0) -> Any:
        return unary(self.channel, path, request, reply, timeout_s)

    def predict(self, inputs: dict[str, Column], model: str = "tips", **fields: Any) -> Any:
        fields.setdefault("event_time", T_US)
        request = pb.PredictRequest(model=model, inputs=messages_of_table(inputs), **fields)
        return self.call(f"{PREDICTIONS}Predict", request, pb.PredictReply)

    def post(self, path: str, body: object) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.http}{path}", data, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def log(self, model: str, rows: int) -> Any:
        """Return the log once it holds `rows` rows: it is written within about a second."""
        deadline = time.monotonic() + 20
        while True:
            table = read_log(self.data / "log", model)
            if table.num_rows >= rows or time.monotonic() > deadline:
                return table
            time.sleep(0.05)

    def logged(self, model: str, ids: set[bytes]) -> list[dict[str, Any]]:
        """Return the log's rows of these predictions once all of them are there."""
        deadline = time.monotonic() + 20
        while True:
            rows = read_log(self.data / "log", model).to_pylist()
            found = [row for row in rows if row["prediction_id"] in ids]
            if len(found) == len(ids) or time.monotonic() > deadline:
                return found
            time.sleep(0.05)


class Ingesting:
    """The small world's ingester, in a thread with a loop of its own."""

    def __init__(self, url: str) -> None:
        self._stop = threading.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(url)))
        self._thread.start()
        assert self._started.wait(30)

    async def _run(self, url: str) -> None:
        async with ingesting(url):
            self._started.set()
            await asyncio.to_thread(self._stop.wait)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    data = tmp_path_factory.mktemp("w")
    bundles = tmp_path_factory.mktemp("bundles")
    versions = [write_version(bundles, seed=seed) for seed in (1, 2)]
    versions.append(write_plain_version(bundles))
    with (
        running_valkey("--appendonly", "yes", "--appendfsync", "always") as valkey,
        OtlpCollector() as spans,
    ):
        ingester = Ingesting(valkey.url)
        collector, socket = start_collector(data)
        config = {
            "registry": f"file://{bundles}",
            "redis": valkey.url,
            "collector": socket,
            "replay_scope": True,
            "trace_endpoint": spans.endpoint if CAN_EXPORT else None,
            "trace_rate": 0,
            "plan": plan(
                1,
                tips=[(versions[0], "live", 0.75), (versions[1], "canary", 0.25)],
                plain=[(versions[2], "live", 1.0)],
            ),
        }
        with collector, start_worker(data, **config) as worker:
            assert worker.event("plan") == {"event": "plan", "plan": 1, "applied": True}
            ready = worker.event("ready")
            channel = grpc.insecure_channel(ready["grpc"])
            world = World(
                data,
                bundles,
                worker,
                collector,
                valkey,
                versions,
                channel,
                ready["grpc"],
                ready["http"],
                spans,
            )
            push_history(world)
            yield world
            channel.close()
            assert worker.end() == 0, worker.errors
        ingester.stop()


def logged_rows(world: World, model: str, ids: set[bytes], rows: int) -> list[dict[str, Any]]:
    """Wait for so many rows of these predictions; those of earlier ones may come late, too."""
    deadline = time.monotonic() + 20
    while True:
        logged = read_log(world.data / "log", model).to_pylist()
        found = [row for row in logged if row["prediction_id"] in ids]
        if len(found) >= rows:
            return found
        assert time.monotonic() < deadline, "the log lacks rows"
        time.sleep(0.05)


def push_history(world: World) -> None:
    batches = [
        rides(
            (NOON_US, 1, "Oslo", 12, 20.5),
            (NOON_US + 10 * MINUTE_US, 1, "Oslo", 30, 50.25),
            (NOON_US + 20 * MINUTE_US, 2, "Bern", None, float("nan")),
        ),
        shifts((NOON_US - HOUR_US, 1, "van", 6, 4.5), (NOON_US, 2, "car", 4, None)),
        people((NOON_US - 24 * HOUR_US, 1, NOON_US - 900 * HOUR_US)),
    ]
    request = pb.PushRequest(
        batches=[
            pb.EventBatch(
                source=batch.source,
                columns=messages_of_table(batch.columns),
                event_times=batch.event_times_us.tolist(),
            )
            for batch in batches
        ]
    )
    reply = world.call(f"{FEATURES}Push", request, pb.PushReply)
    assert reply.accepted == 6
    patiently(lambda: world.predict(asked((1, "Oslo", 1.0)), min_offset=reply.offset))


def patiently(call: Callable[[], Any]) -> Any:
    """Call until what is needed is there (an ingester at work, a store that came back)."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def golden(world: World, version: int, packed: list[bytes]) -> np.ndarray[Any, Any]:
    """What onnxruntime itself says of the rows that the model is said to have got."""
    service = DEFINITIONS.service("tips")
    batch = FeatureBatch.unpack(service, packed, SERVICE_SCHEMA_ID)
    path = world.bundles / f"tips-{version + 1}" / "model.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"features": batch.matrix()})[0]


def test_a_call_of_many_rows_answers_each_with_its_own_features(world: World) -> None:
    reply = world.predict(
        asked((1, "Oslo", 2.0), (2, "Bern", 5.0), (404, "Rome", 1.0), (None, "Oslo", 1.0)),
        request_ids=["r1", "r2", "r3", "r4"],
        return_features=True,
    )
    assert reply.plan == 1
    assert reply.output_width == 1
    assert len(set(reply.prediction_ids)) == 4
    for row in range(4):
        version = world.versions.index(reply.versions[row])
        assert reply.arms[row] == "ab"[version]
        expected = golden(world, version, [reply.features[row]])
        assert reply.outputs[row] == expected[0, 0]
        assert reply.decisions[row] == ("high" if expected[0, 0] >= 0.5 else "low")


def test_the_split_is_sticky_by_request_id_and_fair(world: World) -> None:
    names = [f"request {number}" for number in range(400)]
    inputs = asked(*[(1, "Oslo", 2.0)] * 400)
    first = world.predict(inputs, request_ids=names)
    again = world.predict(inputs, request_ids=names)
    assert list(first.arms) == list(again.arms)
    share = list(first.arms).count("b") / 400
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5


def test_what_was_answered_is_logged_bit_for_bit(world: World) -> None:
    before = world.log("tips", 0).num_rows
    reply = world.predict(
        asked((1, "Oslo", 2.0), (2, "Bern", 5.0)), request_ids=["a", "b"], return_features=True
    )
    table = world.log("tips", before + 2)
    rows = {row["prediction_id"]: row for row in table.to_pylist()}
    for index, prediction_id in enumerate(reply.prediction_ids):
        row = rows[prediction_id]
        assert row["features"] == reply.features[index]
        assert row["outputs"] == [reply.outputs[index]]
        assert row["version"] == reply.versions[index]
        assert row["arm"] == reply.arms[index]
        assert row["propensity"] == {"a": 0.75, "b": 0.25}[row["arm"]]
        assert row["pmf"] == [0.75, 0.25]
        assert row["policy"] == "weighted"
        assert row["schema_id"] == SERVICE_SCHEMA_ID
        assert row["service"].startswith("tips@sha256:")
        assert row["decision"] == reply.decisions[index]
        assert (row["plan"], row["worker"], row["status"], row["attempt"]) == (1, 3, 0, 0)
        assert row["event_time"].timestamp() * 1e6 == T_US
        assert row["total_us"] >= row["features_us"] > 0


def test_a_pinned_version_is_forced_and_logged_so(world: World) -> None:
    before = world.log("tips", 0).num_rows
    reply = world.predict(asked((1, "Oslo", 2.0)), version=world.versions[1])
    assert list(reply.arms) == ["b"]
    rows = world.log("tips", before + 1).to_pylist()
    row = next(row for row in rows if row["prediction_id"] == reply.prediction_ids[0])
    assert row["flags"] == 2
    assert row["propensity"] == 1.0


def test_truth_is_acknowledged_when_it_is_on_disk(world: World) -> None:
    prediction_id = world.predict(asked((1, "Oslo", 2.0))).prediction_ids[0]
    truth = pb.Truth(prediction_id=prediction_id, name="tip", value=1.0, event_time=T_US)
    reply = world.call(
        f"{PREDICTIONS}Feedback", pb.FeedbackRequest(truths=[truth]), pb.FeedbackReply
    )
    assert reply.accepted == 1
    found = read_truth(world.data / "wal").latest.to_pylist()
    assert [row["value"] for row in found if row["prediction_id"] == prediction_id] == [1.0]


def test_json_says_the_same_as_grpc(world: World) -> None:
    body = {
        "model": "tips",
        "inputs": {"driver_id": [1, None], "city": ["Oslo", "Oslo"], "distance": [2, 1.5]},
        "event_time": "2013-03-15T12:30:00Z",
        "request_ids": ["r1", "r4"],
    }
    status, answer = world.post("/v1/predict", body)
    assert status == 200, answer
    reply = world.predict(asked((1, "Oslo", 2.0), (None, "Oslo", 1.5)), request_ids=["r1", "r4"])
    assert answer["versions"] == list(reply.versions)
    assert [row[0] for row in answer["outputs"]] == pytest.approx(list(reply.outputs), rel=1e-7)
    assert uuid.UUID(answer["prediction_ids"][0]).version == 7
    truth = {"prediction_id": answer["prediction_ids"][0], "name": "tip", "value": 0}
    assert world.post("/v1/feedback", {"truths": [truth]}) == (200, {"accepted": 1})
    pushed = {
        "source": "people",
        "columns": {"driver_id": [9], "licensed": ["2010-01-01T00:00:00Z"]},
        "event_times": ["2013-01-01T00:00:00Z"],
    }
    status, answer = world.post("/v1/push", {"batches": [pushed]})
    assert (status, answer["accepted"]) == (200, 1)
    body = {
        "service": "tips",
        "inputs": {"driver_id": [9], "city": [None], "distance": [1]},
        "event_time": T_US,
        "min_offset": answer["offset"],
    }
    status, answer = world.post("/v1/features", body)
    assert status == 200, answer
    assert answer["features"]["computed:licence_day"] == [14610]
    assert answer["features"]["last_shift:seats"] == [None]
    assert answer["status"]["last_shift:seats"] == ["not_found"]


def test_features_by_grpc_are_typed_and_nulls_are_marked(world: World) -> None:
    request = pb.GetFeaturesRequest(
        service="tips",
        inputs=messages_of_table(asked((1, "Oslo", 2.0), (404, "Oslo", 1.0))),
        event_time=T_US,
    )
    reply = world.call(f"{FEATURES}GetFeatures", request, pb.GetFeaturesReply)
    columns = {column.name: column for column in reply.features}
    assert list(columns["driver_rides:minutes_sum_1h"].int64s.v) == [42, 0]
    assert list(columns["driver_rides:minutes_sum_1h"].nulls) == [1]
    service = DEFINITIONS.service("tips")
    status = np.frombuffer(reply.status, np.uint8).reshape(2, len(service.columns))
    assert status[1, service.column_index("driver_rides:minutes_sum_1h")] == 1
    assert status[1, service.column_index("last_shift:seats")] == 2


def test_a_model_without_a_service_takes_columns_of_its_inputs_names(world: World) -> None:
    inputs = {"x": Column(np.array([0.5, -2.0]))}
    reply = world.predict(inputs, model="plain")
    assert len(reply.outputs) == 2
    assert list(reply.decisions) == []
    with pytest.raises(grpc.RpcError) as caught:
        world.predict({"y": Column(np.array([0.5]))}, model="plain")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "column 'x' is missing" in caught.value.details()


def test_tensors_for_a_released_model_are_routed_and_logged(world: World) -> None:
    import tritonclient.grpc as client

    width = len(DEFINITIONS.service("tips").columns)
    rows = np.zeros((2, width), np.float32)
    tensor = client.InferInput("features", [2, width], "FP32")
    tensor.set_data_from_numpy(rows)
    with client.InferenceServerClient(world.grpc) as triton:
        result = triton.infer("tips", [tensor], request_id="r1")
        answer = result.get_response()
        ids = answer.parameters["prediction_id"].string_param.split(",")
        assert answer.model_version in world.versions
        assert result.as_numpy("probability").shape == (2, 1)
        logged = logged_rows(world, "tips", {uuid.UUID(text).bytes for text in ids}, 2)
        assert [row["version"] for row in logged] == [answer.model_version] * 2
        assert triton.get_model_metadata("tips").versions
        assert triton.is_model_ready("tips", world.versions[1])


def test_an_explained_row_says_what_each_feature_added_and_is_logged_so(world: World) -> None:
    inputs, ids = asked((1, "Oslo", 2.0), (2, "Bern", 5.0), (404, "Rome", 1.0)), ["r1", "r2", "x9"]
    request = pb.PredictRequest(
        model="tips", inputs=messages_of_table(inputs), event_time=T_US, request_ids=ids
    )
    reply = world.call(f"{PREDICTIONS}Explain", request, pb.PredictReply)
    assert len(reply.explanations) == 3
    for output, each in zip(reply.outputs, reply.explanations, strict=True):
        assert list(each.features) == list(DEFINITIONS.service("tips").columns)
        assert each.method == "permutation"
        assert len(each.errors) == len(each.attributions) == len(each.features)
        assert sum(each.attributions) + each.base[0] == pytest.approx(output, abs=1e-6)
    again = world.predict(inputs, request_ids=ids, explain=True)
    assert list(again.explanations) == list(reply.explanations)
    assert not world.predict(inputs, request_ids=ids).explanations
    logged = world.logged("tips", {*reply.prediction_ids, *again.prediction_ids})
    assert [row["flags"] for row in logged] == [32] * 6
    said = dict(zip(reply.prediction_ids, reply.explanations, strict=True))
    for row in logged:
        if row["prediction_id"] in said:
            each = said[row["prediction_id"]]
            assert row["attributions"] == pytest.approx(list(each.attributions), abs=1e-6)
            assert row["attribution_base"] == pytest.approx(list(each.base), abs=1e-6)


def test_json_explains_the_same(world: World) -> None:
    body = {
        "model": "tips",
        "inputs": {"driver_id": [1], "city": ["Oslo"], "distance": [2]},
        "event_time": T_US,
        "request_ids": ["r1"],
    }
    inputs = asked((1, "Oslo", 2.0))
    reply = world.predict(inputs, request_ids=["r1"], explain=True).explanations[0]
    for path, more in (("/v1/explain", {}), ("/v1/predict", {"explain": True})):
        status, answer = world.post(path, body | more)
        assert status == 200, answer
        (found,) = answer["explanations"]
        assert found == {
            "method": "permutation",
            "features": list(reply.features),
            "attributions": list(reply.attributions),
            "base": list(reply.base),
            "errors": list(reply.errors),
        }


def test_a_model_without_a_service_explains_its_inputs(world: World) -> None:
    reply = world.predict({"x": Column(np.array([0.5, -2.0]))}, model="plain", explain=True)
    assert [list(each.features) for each in reply.explanations] == [["x"], ["x"]]
    # The background is the bundle's golden rows, and these are two of them.
    assert sum(each.attributions[0] for each in reply.explanations) == pytest.approx(0, abs=1e-6)


def test_tensors_for_a_released_model_are_explained_and_logged_so(world: World) -> None:
    import tritonclient.grpc as client

    tensor = client.InferInput("x", [2, 1], "FP32")
    tensor.set_data_from_numpy(np.array([[0.5], [-2.0]], np.float32))
    with client.InferenceServerClient(world.grpc) as triton:
        result = triton.infer("plain", [tensor], parameters={"explain": True})
    total = result.as_numpy("explanation") + result.as_numpy("explanation_base")
    assert np.abs(total - result.as_numpy("probability")).max() < 1e-6
    parameters = result.get_response().parameters
    assert parameters["explanation_method"].string_param == "permutation"
    ids = parameters["prediction_id"].string_param.split(",")
    logged = world.logged("plain", {uuid.UUID(each).bytes for each in ids})
    assert [row["flags"] for row in logged] == [32, 32]


def test_the_log_says_of_which_trace_a_prediction_was(world: World) -> None:
    """Also where its caller does not record it; and nothing of those that are of none."""
    request = pb.PredictRequest(
        model="plain", inputs=messages_of_table({"x": Column(np.array([0.25]))})
    )
    traced: dict[bytes, bytes | None] = {}
    method = world.channel.unary_unary(f"{PREDICTIONS}Predict")
    for trace in ("5" * 32, ""):
        metadata = (("traceparent", f"00-{trace}-{SPAN}-00"),) if trace else ()
        data = method(request.SerializeToString(), timeout=10, metadata=metadata)
        (prediction_id,) = pb.PredictReply.FromString(data).prediction_ids
        traced[prediction_id] = bytes.fromhex(trace) or None
    found = logged_rows(world, "plain", set(traced), 2)
    assert {row["prediction_id"]: row["trace_id"] for row in found} == traced


@pytest.mark.skipif(not CAN_EXPORT, reason="OpenTelemetry's exporter is not installed")
def test_a_prediction_that_its_caller_records_is_traced_through_its_features(world: World) -> None:
    inputs = messages_of_table(asked((1, "Oslo", 1.0)))
    request = pb.PredictRequest(model="tips", inputs=inputs, event_time=T_US, request_ids=["r-1"])
    metadata = (("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", "a=1"))
    method = world.channel.unary_unary(f"{PREDICTIONS}Predict")
    method(request.SerializeToString(), timeout=10, metadata=metadata)
    server = world.spans.named("Predict", TRACE)
    assert (server.parent_span_id.hex(), server.trace_state) == (SPAN, "a=1")
    about = attributes_of(server)
    assert (about["triton.model_name"], about["triton.request_id"]) == ("tips", "r-1")
    steps = [world.spans.named(name, TRACE) for name in ("features", "queue", "model")]
    for before, after in zip([server, *steps], [*steps, server], strict=True):
        assert before.start_time_unix_nano <= after.end_time_unix_nano
    for step in steps:
        assert step.parent_span_id == server.span_id
        assert server.start_time_unix_nano <= step.start_time_unix_nano
        assert step.end_time_unix_nano <= server.end_time_unix_nano
    assert attributes_of(steps[0]) == {"headrace.service": "tips"}
    assert attributes_of(steps[2])["triton.model_version"] in world.versions


@pytest.mark.parametrize(
    ("inputs", "fields", "code", "text"),
    [
        ({}, {}, "INVALID_ARGUMENT", "no rows"),
        (asked((1, "Oslo", 2.0)), {"model": "nope"}, "NOT_FOUND",
         "model 'nope' is under no release plan"),
        (asked((1, "Oslo", 2.0)), {"version": "sha256:" + "0" * 64}, "NOT_FOUND", "no version"),
        ({"driver_id": Column(np.array([1]))}, {}, "INVALID_ARGUMENT", "'distance' is missing"),
        ({"distance": Column(np.array([1.0])), "driver_id": Column(np.array([1]))}, {},
         "INVALID_ARGUMENT", "join key 'city' is missing"),
        (asked((1, "Oslo", 2.0)) | {"distance": Column(np.array(["far"], object))}, {},
         "INVALID_ARGUMENT", "'distance' has a wrong type"),
        (asked((1, "Oslo", 2.0)) | {"driver_id": Column(np.array([1.5]))}, {},
         "INVALID_ARGUMENT", "join key 'driver_id' has a type"),
        (asked((1, "Oslo", 2.0)) | {"distance": Column(np.array([1.0, 2.0]))}, {},
         "INVALID_ARGUMENT", "column 'distance' has another length"),
        (asked((1, "Oslo", 2.0)), {"request_ids": ["a", "b"]}, "INVALID_ARGUMENT",
         "request_ids are not one a row"),
        (asked((1, "Oslo", 2.0)), {"min_offset": "soon"}, "INVALID_ARGUMENT", "min_offset"),
    ],
)  # fmt: skip
def test_bad_input_is_named_and_the_server_goes_on(
    world: World, inputs: dict[str, Column], fields: dict[str, Any], code: str, text: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        world.predict(inputs, **fields)
    assert caught.value.code().name == code
    assert text in caught.value.details()
    assert "Traceback" not in caught.value.details()
    assert len(world.predict(asked((1, "Oslo", 2.0))).outputs) == 1


def test_nan_infinity_and_extremes_are_legal_inputs(world: World) -> None:
    values = [float("nan"), float("inf"), float("-inf"), 1e308]
    reply = world.predict(asked(*[(1, "Oslo", value) for value in values]))
    assert len(reply.outputs) == 4


def test_a_wrong_message_is_no_crash(world: World) -> None:
    method = world.channel.unary_unary(f"{PREDICTIONS}Predict")
    with pytest.raises(grpc.RpcError) as caught:
        method(b"\xff\xff\xff", timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/v1/predict", {"model": "tips", "inputs": {}, "modle": 1}, "modle"),
        ("/v1/predict", {"model": "tips", "inputs": {"driver_id": [1], "city": ["a", "b"]}},
         "column 'city' has another length"),
        ("/v1/predict", {"model": "tips", "inputs": {"distance": ["far"]}},
         "column 'distance', row 0"),
        ("/v1/predict", {"model": "tips", "inputs": {"a": [1]}, "event_time": "noon"},
         "event_time"),
        ("/v1/feedback", {"truths": []}, "number of truths"),
        ("/v1/feedback", {"truths": [{"prediction_id": "x", "name": "a", "value": 1}]}, "UUID"),
        ("/v1/push", {"batches": [{"source": "ridez", "columns": {}, "event_times": []}]},
         "ridez"),
        ("/v1/push", {"batches": [{"source": "people", "event_times": [1, 2],
                                   "columns": {"driver_id": [1], "licensed": [1]}}]},
         "field 'driver_id'"),
    ],
)  # fmt: skip
def test_bad_json_is_named(world: World, path: str, body: Any, text: str) -> None:
    status, answer = world.post(path, body)
    assert status == 400, answer
    assert text in answer["error"]


def test_a_barrier_that_is_not_reached_names_the_offset(world: World) -> None:
    request = pb.PredictRequest(
        model="tips",
        inputs=messages_of_table(asked((1, "Oslo", 1.0))),
        event_time=T_US,
        min_offset="99999999999999-0",
    )
    with pytest.raises(grpc.RpcError) as caught:
        world.call(f"{PREDICTIONS}Predict", request, pb.PredictReply, timeout_s=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_new_plan_swaps_in_and_a_bad_one_changes_nothing(world: World) -> None:
    bad = write_version(world.bundles, seed=8, golden_shift=0.5)
    arms = [(world.versions[0], "live", 0.75), (world.versions[1], "canary", 0.25)]
    plain = [(world.versions[2], "live", 1.0)]
    world.worker.send({"plan": plan(2, tips=[(bad, "live", 1.0)], plain=plain)})
    event = world.worker.event("plan")
    assert (event["plan"], event["applied"]) == (2, False)
    assert "golden rows" in event["error"]
    assert world.predict(asked((1, "Oslo", 2.0))).plan == 1
    missing = plan(3, tips=[("sha256:" + "1" * 64, "live", 1.0)])
    world.worker.send({"plan": missing})
    assert "no bundle" in world.worker.event("plan")["error"]
    world.worker.send({"plan": plan(1, tips=[(world.versions[1], "live", 1.0)])})
    assert world.worker.event("plan")["applied"] is False
    assert world.predict(asked((1, "Oslo", 2.0))).plan == 1
    arms.append((world.versions[1], "shadow", 1.0))
    world.worker.send({"plan": plan(4, tips=arms, plain=plain)})
    assert world.worker.event("plan") == {"event": "plan", "plan": 4, "applied": True}
    reply = world.predict(asked((1, "Oslo", 2.0)))
    assert reply.plan == 4
    rows = logged_rows(world, "tips", set(reply.prediction_ids), 2)
    assert sorted(row["flags"] for row in rows) == [0, 1]


def test_the_store_may_go_and_come_back(world: World) -> None:
    world.valkey.kill()
    with pytest.raises(grpc.RpcError) as caught:
        world.predict(asked((1, "Oslo", 2.0)))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "store" in caught.value.details()
    assert len(world.predict({"x": Column(np.array([0.5]))}, model="plain").outputs) == 1
    world.valkey.start()
    assert len(patiently(lambda: world.predict(asked((1, "Oslo", 2.0)))).outputs) == 1
