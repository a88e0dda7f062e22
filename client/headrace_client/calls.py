"""Each call as a value: what to send where, how to read the answer. No IO: both clients use it.

Common to all: `timeout_s` is the time of the whole call with its retries, in seconds; None is the
client's. `event_time_us` and all times are UTC microseconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

from google.protobuf.message import DecodeError

from headrace_client.answers import STATUSES, Explanation, FeatureRows, Prediction, Truth
from headrace_client.columns import Columns, messages_of, values_of
from headrace_client.errors import InternalError, InvalidArgumentError
from headrace_client.pb import headrace_pb2 as pb
from headrace_client.pb import infer_pb2
from headrace_client.tensors import Buffer, Tensor, request_of, tensors_of

Answer = TypeVar("Answer")


class Call(NamedTuple, Generic[Answer]):
    """One unary call. All of them may be sent twice: see `feedback` for the one that writes."""

    path: str
    request: bytes
    read: Callable[[bytes], Answer]
    timeout_s: float | None


def predict(
    model: str,
    inputs: Columns,
    *,
    event_time_us: int | None = None,
    min_offset: str = "",
    request_ids: Sequence[str] = (),
    version: str = "",
    return_features: bool = False,
    explain: bool = False,
    timeout_s: float | None = None,
) -> Call[list[Prediction]]:
    """Return a prediction a row of `inputs`: columns of entity ids and request inputs.

    `request_ids` (one a row) keep a request on its arm. `version` pins one. `min_offset` waits for
    what was pushed. `event_time_us` needs the `replay` scope. `explain` and `return_features` add
    to each answer. A retry may have been answered before: then two predictions are logged, and the
    id that you get is the one that counts.
    """
    request = pb.PredictRequest(
        model=model,
        inputs=messages_of(inputs),
        event_time=event_time_us,
        min_offset=min_offset,
        request_ids=request_ids,
        version=version,
        return_features=return_features,
        explain=explain,
    )
    return _call(
        "headrace.v1.Predictions/Predict", request, pb.PredictReply, _predictions, timeout_s
    )


def explain(
    model: str,
    inputs: Columns,
    *,
    event_time_us: int | None = None,
    min_offset: str = "",
    request_ids: Sequence[str] = (),
    version: str = "",
    timeout_s: float | None = None,
) -> Call[list[Prediction]]:
    """Return predictions that say what each feature added; as `predict` with `explain`."""
    call = predict(
        model,
        inputs,
        event_time_us=event_time_us,
        min_offset=min_offset,
        request_ids=request_ids,
        version=version,
        timeout_s=timeout_s,
    )
    return call._replace(path="/headrace.v1.Predictions/Explain")


def feedback(
    prediction_id: UUID | str | bytes,
    name: str,
    value: float,
    *,
    event_time_us: int | None = None,
    source: str = "",
    timeout_s: float | None = None,
) -> Call[int]:
    """Say how a prediction turned out; return 1 once it is on disk. See `feedback_batch`."""
    truth = Truth(prediction_id, name, value, event_time_us, source)
    return feedback_batch([truth], timeout_s=timeout_s)


def feedback_batch(truths: Iterable[Truth], *, timeout_s: float | None = None) -> Call[int]:
    """Say how predictions turned out; return how many are on disk: all, or it raises.

    A retry carries the same ids: the last truth of a prediction and name counts, and the same one
    twice is one.
    """
    request = pb.FeedbackRequest(
        truths=[
            pb.Truth(
                prediction_id=_id_bytes(truth.prediction_id),
                name=truth.name,
                value=truth.value,
                event_time=truth.event_time_us,
                source=truth.source,
            )
            for truth in truths
        ]
    )
    return _call(
        "headrace.v1.Predictions/Feedback", request, pb.FeedbackReply, _accepted, timeout_s
    )


def get_features(
    service: str,
    inputs: Columns,
    *,
    event_time_us: int | None = None,
    min_offset: str = "",
    timeout_s: float | None = None,
) -> Call[FeatureRows]:
    """Return the features of a service for each row of `inputs`: columns of entity ids."""
    request = pb.GetFeaturesRequest(
        service=service,
        inputs=messages_of(inputs),
        event_time=event_time_us,
        min_offset=min_offset,
    )
    return _call(
        "headrace.v1.Features/GetFeatures", request, pb.GetFeaturesReply, _feature_rows, timeout_s
    )


def infer(
    model: str,
    tensors: Mapping[str, Buffer],
    *,
    version: str = "",
    outputs: Sequence[str] = (),
    timeout_s: float | None = None,
) -> Call[dict[str, Tensor]]:
    """Return a model's outputs for tensors by name (Open Inference Protocol v2).

    A tensor is a buffer of numbers or bools, NumPy's arrays among them; its format and shape say
    datatype and shape. `outputs` names those wanted; all, where empty.
    """
    request = request_of(model, tensors, version, outputs)
    return _call(
        "inference.GRPCInferenceService/ModelInfer",
        request,
        infer_pb2.ModelInferResponse,
        tensors_of,
        timeout_s,
    )


def _call(
    method: str,
    request: Any,
    reply: Any,
    read: Callable[[Any], Answer],
    timeout_s: float | None,
) -> Call[Answer]:
    def read_bytes(data: bytes) -> Answer:
        try:
            return read(reply.FromString(data))
        except (DecodeError, ValueError, IndexError) as error:
            raise InternalError("the answer cannot be read") from error

    return Call(f"/{method}", request.SerializeToString(), read_bytes, timeout_s)


def _id_bytes(prediction_id: UUID | str | bytes) -> bytes:
    try:
        if isinstance(prediction_id, str):
            return UUID(prediction_id).bytes
        if isinstance(prediction_id, bytes):
            return UUID(bytes=prediction_id).bytes
    except ValueError:
        raise InvalidArgumentError(f"{prediction_id!r} is no id of a prediction") from None
    return prediction_id.bytes


def _accepted(reply: pb.FeedbackReply) -> int:
    return reply.accepted


def _predictions(reply: pb.PredictReply) -> list[Prediction]:
    rows, width = len(reply.prediction_ids), reply.output_width
    columns = (reply.versions, reply.arms)
    options = (reply.decisions, reply.features, reply.explanations)
    if (
        len(reply.outputs) != rows * width
        or any(len(column) != rows for column in columns)
        or any(len(column) not in {0, rows} for column in options)
    ):
        raise InternalError("the answer's columns have different lengths")
    return [
        Prediction(
            id=UUID(bytes=reply.prediction_ids[row]),
            version=reply.versions[row],
            arm=reply.arms[row],
            outputs=list(reply.outputs[row * width : (row + 1) * width]),
            decision=reply.decisions[row] if reply.decisions else None,
            features=reply.features[row] if reply.features else None,
            explanation=_explanation(reply.explanations[row]) if reply.explanations else None,
        )
        for row in range(rows)
    ]


def _explanation(message: pb.Explanation) -> Explanation:
    scores = len(message.base)

    def by_feature(numbers: Sequence[float]) -> dict[str, list[float]]:
        if not numbers:
            return {}
        if len(numbers) != scores * len(message.features):
            raise InternalError("the answer's explanation does not fit its features")
        return {
            name: list(numbers[place * scores : (place + 1) * scores])
            for place, name in enumerate(message.features)
        }

    return Explanation(
        message.method,
        list(message.base),
        by_feature(message.attributions),
        by_feature(message.errors),
    )


def _feature_rows(reply: pb.GetFeaturesReply) -> FeatureRows:
    names = [column.name for column in reply.features]
    values = {column.name: values_of(column) for column in reply.features}
    if len(reply.status) != sum(map(len, values.values())):
        raise InternalError("the answer's columns have different lengths")
    if any(status >= len(STATUSES) for status in reply.status):
        raise InternalError("the answer has a status that this client does not know")
    return FeatureRows(
        values,
        {
            name: [STATUSES[status] for status in reply.status[place :: len(names)]]
            for place, name in enumerate(names)
        },
    )
