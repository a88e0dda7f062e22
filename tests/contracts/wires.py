"""One way to ask, two wires: gRPC messages, and their JSON twins over HTTP."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import numpy as np

from features import Column
from features.online.payload import EventBatch
from features.types import STATUS_NAMES
from features.values import json_of_table
from headrace.errors import STATUS
from headrace.ids import id_bytes, id_text
from server.pb import headrace_pb2 as pb
from server.protocol.columns import messages_of_table
from tests.server.test_predict import FEATURES, PREDICTIONS, World

Inputs = dict[str, Column]
Truth = tuple[bytes, str, float, int]


class RefusedError(Exception):
    """What a wire answered instead: the code by its name, and the text."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


@dataclass(frozen=True)
class Answer:
    """A prediction without what differs from call to call: the ids."""

    model: str
    plan: int
    versions: list[str]
    arms: list[str]
    outputs: list[float]
    decisions: list[str]
    features: list[bytes]


class Wire(Protocol):
    """What both can do."""

    def predict(self, model: str, inputs: Inputs, **fields: Any) -> Answer: ...
    def features(
        self, service: str, inputs: Inputs, **fields: Any
    ) -> tuple[dict[str, list[Any]], list[list[str]]]: ...
    def push(self, batches: Sequence[EventBatch]) -> int: ...
    def feedback(self, truths: Sequence[Truth]) -> int: ...


class Grpc:
    """The messages."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _call(self, path: str, request: Any, reply: Any) -> Any:
        try:
            return self._world.call(path, request, reply)
        except grpc.RpcError as error:
            raise RefusedError(error.code().name.lower(), error.details() or "") from None

    def predict(self, model: str, inputs: Inputs, **fields: Any) -> Answer:
        request = pb.PredictRequest(model=model, inputs=messages_of_table(inputs), **fields)
        reply = self._call(f"{PREDICTIONS}Predict", request, pb.PredictReply)
        assert len(reply.prediction_ids) == len(reply.versions)
        return Answer(
            reply.model, reply.plan, list(reply.versions), list(reply.arms), list(reply.outputs),
            list(reply.decisions), list(reply.features),
        )  # fmt: skip

    def features(
        self, service: str, inputs: Inputs, **fields: Any
    ) -> tuple[dict[str, list[Any]], list[list[str]]]:
        request = pb.GetFeaturesRequest(service=service, inputs=messages_of_table(inputs), **fields)
        reply = self._call(f"{FEATURES}GetFeatures", request, pb.GetFeaturesReply)
        values = {}
        for column in reply.features:
            found = list(getattr(column, column.WhichOneof("values")).v)
            values[column.name] = [
                None if row in column.nulls else value for row, value in enumerate(found)
            ]
        status = np.frombuffer(reply.status, np.uint8).reshape(-1, len(values)).T
        return values, [[STATUS_NAMES[each] for each in column] for column in status]

    def push(self, batches: Sequence[EventBatch]) -> int:
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
        accepted: int = self._call(f"{FEATURES}Push", request, pb.PushReply).accepted
        return accepted

    def feedback(self, truths: Sequence[Truth]) -> int:
        request = pb.FeedbackRequest(
            truths=[
                pb.Truth(prediction_id=id, name=name, value=value, event_time=event_time)
                for id, name, value, event_time in truths  # noqa: A001
            ]
        )
        reply = self._call(f"{PREDICTIONS}Feedback", request, pb.FeedbackReply)
        accepted: int = reply.accepted
        return accepted


class Rest:
    """The JSON twins."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        status, answer = self._world.post(path, body)
        if status == 200:
            return answer
        assert set(answer) == {"error", "code"}
        assert status == STATUS[answer["code"]].http
        raise RefusedError(answer["code"], answer["error"])

    def predict(self, model: str, inputs: Inputs, **fields: Any) -> Answer:
        body = {"model": model, "inputs": json_of_table(inputs), **fields}
        answer = self._post("/v1/predict", body)
        assert all(len(id_bytes(text)) == 16 for text in answer["prediction_ids"])
        return Answer(
            answer["model"], answer["plan"], answer["versions"], answer["arms"],
            [value for row in answer["outputs"] for value in row], answer.get("decisions", []),
            [base64.b64decode(text) for text in answer.get("features", [])],
        )  # fmt: skip

    def features(
        self, service: str, inputs: Inputs, **fields: Any
    ) -> tuple[dict[str, list[Any]], list[list[str]]]:
        body = {"service": service, "inputs": json_of_table(inputs), **fields}
        answer = self._post("/v1/features", body)
        return answer["features"], list(answer["status"].values())

    def push(self, batches: Sequence[EventBatch]) -> int:
        body = [
            {
                "source": batch.source,
                "columns": json_of_table(batch.columns),
                "event_times": batch.event_times_us.tolist(),
            }
            for batch in batches
        ]
        accepted: int = self._post("/v1/push", {"batches": body})["accepted"]
        return accepted

    def feedback(self, truths: Sequence[Truth]) -> int:
        body = [
            {"prediction_id": id_text(id), "name": name, "value": value, "event_time": event_time}
            for id, name, value, event_time in truths  # noqa: A001
        ]
        accepted: int = self._post("/v1/feedback", {"truths": body})["accepted"]
        return accepted


def both(world: World) -> dict[str, Wire]:
    return {"grpc": Grpc(world), "rest": Rest(world)}
