"""`headrace.v1`: Predict, Explain, Feedback, GetFeatures and Push, over gRPC and as JSON over HTTP.

Both wires build the same calls; only the shape of the bytes differs. In JSON a table is
`{"column": [values…]}`, a prediction id is UUID text, a time is microseconds or ISO 8601 text.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from features import DType, FeatureBatch, Table
from features.definitions import FUTURE_TOLERANCE_US
from features.online.payload import EventBatch
from features.types import row_count
from features.values import table_of_json, time_us
from headrace.errors import InvalidArgumentError
from headrace.ids import id_bytes, id_text
from headrace.times import SECOND_US
from server.access.callers import check_caller
from server.access.principal import Scope
from server.explained import RowExplanation
from server.feature_access import FeatureAccess
from server.models.bundles import ReleasedModels
from server.pb import headrace_pb2 as pb
from server.predict import DEADLINE_NS, ROWS_MAX, PredictCall, Prediction, Predictor
from server.protocol.columns import table_of_messages
from server.protocol.features_door import FeaturesDoor, Tick
from server.protocol.features_json import json_reply
from server.protocol.features_read import Admission
from server.protocol.features_reply import encode_packed_reply, encode_reply
from server.protocol.features_rest_door import FeaturesRestDoor
from server.protocol.oip_grpc import encoded, parse
from server.tap import Tap, TruthRecord
from server.wire.handlers import Context, Handlers
from server.wire.routes import Request, Response, Routes, json_response

GET_FEATURES = "/headrace.v1.Features/GetFeatures"
TRUTHS_MAX = 10_000
_TEXT_MAX = 256  # of a truth's name and source
_Body = TypeVar("_Body")


class _JsonPredict(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    inputs: dict[str, list[Any]]
    event_time: int | str | None = None
    min_offset: str = ""
    request_ids: list[str] = []
    version: str = ""
    return_features: bool = False
    explain: bool = False


class _JsonTruth(msgspec.Struct, forbid_unknown_fields=True):
    prediction_id: str
    name: str
    value: float
    event_time: int | str | None = None
    source: str = ""


class _JsonFeedback(msgspec.Struct, forbid_unknown_fields=True):
    truths: list[_JsonTruth]


class _JsonGetFeatures(msgspec.Struct, forbid_unknown_fields=True):
    service: str
    inputs: dict[str, list[Any]]
    event_time: int | str | None = None
    min_offset: str = ""


class _JsonBatch(msgspec.Struct, forbid_unknown_fields=True):
    source: str
    columns: dict[str, list[Any]]
    event_times: list[int | str]
    created_times: list[int | str] = []


class _JsonPush(msgspec.Struct, forbid_unknown_fields=True):
    batches: list[_JsonBatch]


class HeadraceCalls:
    """The service's operations over what a worker holds."""

    def __init__(
        self, predictor: Predictor, models: ReleasedModels, features: FeatureAccess, tap: Tap
    ) -> None:
        self._predictor = predictor
        self._models = models
        self._features = features
        self._tap = tap

    def table(self) -> Handlers:
        """Return the gRPC handler table."""
        return {
            "/headrace.v1.Predictions/Predict": self._predict,
            "/headrace.v1.Predictions/Explain": self._explain,
            "/headrace.v1.Predictions/Feedback": self._feedback,
            GET_FEATURES: self._get_features,
            "/headrace.v1.Features/Push": self._push,
        }

    def add_to(self, routes: Routes, admission: Admission | None = None) -> None:
        """Add the JSON twins. `admission` is asked before the door of GetFeatures."""
        door = FeaturesRestDoor(self._features, self._predictor.event_time_us, admission)
        routes.add("POST", "/v1/predict", self._predict_json)
        routes.add("POST", "/v1/explain", self._explain_json)
        routes.add("POST", "/v1/feedback", self._feedback_json)
        routes.add("POST", "/v1/features", self._get_features_json, door=door)
        routes.add("POST", "/v1/push", self._push_json)

    def features_door(self, tick: Tick, admission: Admission | None) -> FeaturesDoor:
        """Return what takes GetFeatures before its handler, on our own gRPC transport."""
        return FeaturesDoor(self._features, tick, self._predictor.event_time_us, admission)

    # Predict.

    async def _predict(self, data: bytes, context: Context) -> bytes:
        return await self._answer(parse(pb.PredictRequest, data), context)

    async def _explain(self, data: bytes, context: Context) -> bytes:
        request = parse(pb.PredictRequest, data)
        request.explain = True
        return await self._answer(request, context)

    async def _answer(self, request: Any, context: Context) -> bytes:
        call = PredictCall(
            request.model,
            table_of_messages(request.inputs, f"inputs of model '{request.model}'"),
            request.event_time if request.HasField("event_time") else None,
            request.min_offset,
            request.request_ids,
            request.version,
            request.return_features,
            request.explain,
        )
        answer = await self._predictor.predict(call, context)
        reply = pb.PredictReply(
            model=answer.model,
            prediction_ids=answer.prediction_ids,
            versions=answer.versions,
            arms=answer.arms,
            outputs=answer.outputs.ravel().tolist(),
            output_width=answer.outputs.shape[1],
            decisions=answer.decisions,
            features=answer.features,
            plan=answer.plan,
            explanations=map(_explanation_message, answer.explanations),
        )
        return encoded(reply)

    async def _predict_json(self, request: Request) -> Response:
        return await self._answer_json(request, _body(request, _JsonPredict))

    async def _explain_json(self, request: Request) -> Response:
        body = _body(request, _JsonPredict)
        body.explain = True
        return await self._answer_json(request, body)

    async def _answer_json(self, request: Request, body: _JsonPredict) -> Response:
        where = f"inputs of model '{body.model}'"
        dtypes: dict[str, DType] = {}
        model = self._models.find(body.model)
        for version in model.versions.values() if model is not None else ():
            if version.service is not None:
                dtypes |= version.service.input_types
        call = PredictCall(
            body.model,
            table_of_json(body.inputs, dtypes, where),
            _optional_time(body.event_time),
            body.min_offset,
            body.request_ids,
            body.version,
            body.return_features,
            body.explain,
        )
        answer = await self._predictor.predict(call, _context(request))
        return json_response(_prediction_json(answer))

    # Feedback.

    async def _feedback(self, data: bytes, context: Context) -> bytes:
        request = parse(pb.FeedbackRequest, data)
        now_us = self._predictor.event_time_us(None)
        truths = [
            (
                truth.prediction_id,
                truth.name,
                truth.value,
                truth.event_time if truth.HasField("event_time") else now_us,
                truth.source,
            )
            for truth in request.truths
        ]
        accepted = await self._send(truths, context)
        return encoded(pb.FeedbackReply(accepted=accepted))

    async def _feedback_json(self, request: Request) -> Response:
        body = _body(request, _JsonFeedback)
        now_us = self._predictor.event_time_us(None)
        truths = []
        for row, truth in enumerate(body.truths):
            given_us = _optional_time(truth.event_time)
            try:
                prediction_id = id_bytes(truth.prediction_id)
            except ValueError:
                raise InvalidArgumentError(
                    "prediction_id is not a UUID",
                    where=f"truth {row}",
                    got=truth.prediction_id[:64],
                ) from None
            when_us = now_us if given_us is None else given_us
            truths.append((prediction_id, truth.name, truth.value, when_us, truth.source))
        return json_response({"accepted": await self._send(truths, _context(request))})

    async def _send(self, truths: Sequence[TruthRecord], context: Context) -> int:
        if not 0 < len(truths) <= TRUTHS_MAX:
            raise InvalidArgumentError(
                "not a number of truths for one call",
                expected=f"1 to {TRUTHS_MAX}",
                got=len(truths),
            )
        for row, truth in enumerate(truths):
            _check_truth(truth, f"truth {row}")
        return await self._tap.send_truth(truths, _seconds_left(context))

    # GetFeatures.

    async def _get_features(self, data: bytes, context: Context) -> bytes:
        request = parse(pb.GetFeaturesRequest, data)
        inputs = table_of_messages(request.inputs, f"inputs of service '{request.service}'")
        event_time = request.event_time if request.HasField("event_time") else None
        batch = await self._read(request.service, inputs, event_time, request.min_offset, context)
        encode = encode_packed_reply if request.packed else encode_reply
        return encode(request.service, batch)

    async def _get_features_json(self, request: Request) -> Response:
        body = _body(request, _JsonGetFeatures)
        check_caller(Scope.FEATURES, body.service)
        service, _ = await self._features.service(body.service)
        inputs = table_of_json(
            body.inputs, service.input_types, f"inputs of service '{body.service}'"
        )
        batch = await self._read(
            body.service, inputs, _optional_time(body.event_time), body.min_offset,
            _context(request),
        )  # fmt: skip
        return Response(200, [json_reply(body.service, batch)])

    async def _read(
        self,
        name: str,
        inputs: Table,
        event_time_us: int | None,
        min_offset: str,
        context: Context,
    ) -> FeatureBatch:
        check_caller(Scope.FEATURES, name)
        if event_time_us is not None:
            check_caller(Scope.REPLAY, name)
        service, _ = await self._features.service(name)
        where = f"inputs of service '{name}'"
        rows = row_count(inputs, where)
        if not 0 < rows <= ROWS_MAX:
            raise InvalidArgumentError(
                "not a number of rows for one call",
                where=where,
                expected=f"1 to {ROWS_MAX}",
                got=rows,
            )
        times = np.full(rows, self._predictor.event_time_us(event_time_us), np.int64)
        deadline_ns = context.deadline_ns or time.monotonic_ns() + DEADLINE_NS
        return await self._features.read(service, inputs, times, min_offset or None, deadline_ns)

    # Push.

    async def _push(self, data: bytes, context: Context) -> bytes:
        request = parse(pb.PushRequest, data)
        batches = [
            EventBatch(
                batch.source,
                table_of_messages(batch.columns, f"push to source {batch.source!r}"),
                np.array(batch.event_times, np.int64),
                np.array(batch.created_times, np.int64) if batch.created_times else None,
            )
            for batch in request.batches
        ]
        offset, accepted = await self._push_batches(batches)
        return encoded(pb.PushReply(offset=offset, accepted=accepted))

    async def _push_json(self, request: Request) -> Response:
        body = _body(request, _JsonPush)
        batches = []
        for batch in body.batches:
            check_caller(Scope.PUSH, batch.source)
            source = await self._features.source(batch.source)
            where = f"push to source {batch.source!r}"
            dtypes = source.dtypes if source is not None else {}
            created = _times(batch.created_times, f"{where}: created_times")
            batches.append(
                EventBatch(
                    batch.source,
                    table_of_json(batch.columns, dtypes, where),
                    _times(batch.event_times, f"{where}: event_times"),
                    created if len(created) else None,
                )
            )
        offset, accepted = await self._push_batches(batches)
        return json_response({"offset": offset, "accepted": accepted})

    async def _push_batches(self, batches: Sequence[EventBatch]) -> tuple[str, int]:
        for batch in batches:
            check_caller(Scope.PUSH, batch.source)
        now_us = self._predictor.event_time_us(None)
        for batch in batches:
            _check_not_ahead(batch, now_us)
        offset = await self._features.push(batches)
        return offset, sum(map(len, batches))


def _check_not_ahead(batch: EventBatch, now_us: int) -> None:
    """Refuse events of the future: one would push all real ones out of its entity's windows."""
    ahead = np.flatnonzero(batch.event_times_us > now_us + FUTURE_TOLERANCE_US)
    if ahead.size:
        row = int(ahead[0])
        raise InvalidArgumentError(
            f"event_time of row {row} is ahead of the server's clock",
            where=f"push to source {batch.source!r}",
            expected=f"at most {FUTURE_TOLERANCE_US // SECOND_US} s ahead",
            got=f"{int(batch.event_times_us[row])} µs",
            mend="times are microseconds since 1970, UTC",
        )


def _check_truth(truth: TruthRecord, where: str) -> None:
    prediction_id, name, value, _, source = truth
    if len(prediction_id) != 16:
        raise InvalidArgumentError(
            "prediction_id is not 16 bytes", where=where, got=f"{len(prediction_id)} bytes"
        )
    if not name or len(name) > _TEXT_MAX or len(source) > _TEXT_MAX:
        raise InvalidArgumentError(
            "name or source has a wrong length", where=where, expected=f"1 to {_TEXT_MAX} letters"
        )
    if not math.isfinite(value):
        raise InvalidArgumentError(f"value of '{name}' is not a number", where=where, got=value)


def _prediction_json(answer: Prediction) -> Mapping[str, Any]:
    result: dict[str, Any] = {
        "model": answer.model,
        "plan": answer.plan,
        "prediction_ids": [id_text(each) for each in answer.prediction_ids],
        "versions": answer.versions,
        "arms": answer.arms,
        "outputs": answer.outputs.tolist(),
    }
    if answer.decisions:
        result["decisions"] = answer.decisions
    if answer.features:
        result["features"] = answer.features
    if answer.explanations:
        result["explanations"] = [_explanation_json(each) for each in answer.explanations]
    return result


def _explanation_message(explanation: RowExplanation) -> Any:
    return pb.Explanation(**_explanation_json(explanation))


def _explanation_json(explanation: RowExplanation) -> dict[str, Any]:
    result: dict[str, Any] = {
        "method": explanation.method,
        "features": explanation.features,
        "attributions": explanation.values.ravel().tolist(),
        "base": explanation.base.tolist(),
    }
    if explanation.errors is not None:
        result["errors"] = explanation.errors.ravel().tolist()
    return result


def _body(request: Request, kind: type[_Body]) -> _Body:
    """Return the body. NaN and Infinity, which JSON lacks and clients send, are taken too."""
    try:
        return msgspec.json.decode(request.body, type=kind)
    except msgspec.ValidationError as error:
        raise _wrong_body(request, error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        unreadable = error
    try:
        return msgspec.convert(json.loads(request.body, parse_float=_finite), type=kind)
    except msgspec.ValidationError as error:
        raise _wrong_body(request, error) from None
    except (ValueError, RecursionError):
        raise _wrong_body(request, unreadable) from None


def _wrong_body(request: Request, error: Exception) -> InvalidArgumentError:
    return InvalidArgumentError(f"the body is not what {request.path} takes: {error}")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):  # 1e999: too large is not the same as Infinity
        raise ValueError("number out of range")
    return value


def _context(request: Request) -> Context:
    return Context(request.headers, None, request.peer)


def _optional_time(value: int | str | None) -> int | None:
    return None if value is None else time_us(value, "event_time")


def _times(values: Sequence[int | str], where: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([time_us(value, where) for value in values], np.int64)


def _seconds_left(context: Context) -> float | None:
    if context.deadline_ns is None:
        return None
    return max(context.deadline_ns - time.monotonic_ns(), 0) / 1e9
