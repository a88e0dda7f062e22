from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Column(_message.Message):
    __slots__ = ("name", "int64s", "doubles", "strings", "bools", "bytes", "int64_arrays", "double_arrays", "float_arrays", "string_arrays", "nulls")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INT64S_FIELD_NUMBER: _ClassVar[int]
    DOUBLES_FIELD_NUMBER: _ClassVar[int]
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    BOOLS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    INT64_ARRAYS_FIELD_NUMBER: _ClassVar[int]
    DOUBLE_ARRAYS_FIELD_NUMBER: _ClassVar[int]
    FLOAT_ARRAYS_FIELD_NUMBER: _ClassVar[int]
    STRING_ARRAYS_FIELD_NUMBER: _ClassVar[int]
    NULLS_FIELD_NUMBER: _ClassVar[int]
    name: str
    int64s: Int64Values
    doubles: DoubleValues
    strings: StringValues
    bools: BoolValues
    bytes: BytesValues
    int64_arrays: Int64Arrays
    double_arrays: DoubleArrays
    float_arrays: FloatArrays
    string_arrays: StringArrays
    nulls: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., int64s: _Optional[_Union[Int64Values, _Mapping]] = ..., doubles: _Optional[_Union[DoubleValues, _Mapping]] = ..., strings: _Optional[_Union[StringValues, _Mapping]] = ..., bools: _Optional[_Union[BoolValues, _Mapping]] = ..., bytes: _Optional[_Union[BytesValues, _Mapping]] = ..., int64_arrays: _Optional[_Union[Int64Arrays, _Mapping]] = ..., double_arrays: _Optional[_Union[DoubleArrays, _Mapping]] = ..., float_arrays: _Optional[_Union[FloatArrays, _Mapping]] = ..., string_arrays: _Optional[_Union[StringArrays, _Mapping]] = ..., nulls: _Optional[_Iterable[int]] = ...) -> None: ...

class Int64Values(_message.Message):
    __slots__ = ("v",)
    V_FIELD_NUMBER: _ClassVar[int]
    v: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, v: _Optional[_Iterable[int]] = ...) -> None: ...

class DoubleValues(_message.Message):
    __slots__ = ("v",)
    V_FIELD_NUMBER: _ClassVar[int]
    v: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, v: _Optional[_Iterable[float]] = ...) -> None: ...

class StringValues(_message.Message):
    __slots__ = ("v",)
    V_FIELD_NUMBER: _ClassVar[int]
    v: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, v: _Optional[_Iterable[str]] = ...) -> None: ...

class BoolValues(_message.Message):
    __slots__ = ("v",)
    V_FIELD_NUMBER: _ClassVar[int]
    v: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, v: _Optional[_Iterable[bool]] = ...) -> None: ...

class BytesValues(_message.Message):
    __slots__ = ("v",)
    V_FIELD_NUMBER: _ClassVar[int]
    v: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, v: _Optional[_Iterable[bytes]] = ...) -> None: ...

class FloatValues(_message.Message):
    __slots__ = ("v",)
    V_FIELD_NUMBER: _ClassVar[int]
    v: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, v: _Optional[_Iterable[float]] = ...) -> None: ...

class Int64Arrays(_message.Message):
    __slots__ = ("v",)
    V_FIELD_NUMBER: _ClassVar[int]
    v: _containers.RepeatedCompositeFieldContainer[Int64Values]
    def __init__(self, v: _Optional[_Iterable[_Union[Int64Values, _Mapping]]] = ...) -> None: ...

class DoubleArrays(_message.Message):
    __slots__ = ("v",)
    V_FIELD_NUMBER: _ClassVar[int]
    v: _containers.RepeatedCompositeFieldContainer[DoubleValues]
    def __init__(self, v: _Optional[_Iterable[_Union[DoubleValues, _Mapping]]] = ...) -> None: ...

class FloatArrays(_message.Message):
    __slots__ = ("v",)
    V_FIELD_NUMBER: _ClassVar[int]
    v: _containers.RepeatedCompositeFieldContainer[FloatValues]
    def __init__(self, v: _Optional[_Iterable[_Union[FloatValues, _Mapping]]] = ...) -> None: ...

class StringArrays(_message.Message):
    __slots__ = ("v",)
    V_FIELD_NUMBER: _ClassVar[int]
    v: _containers.RepeatedCompositeFieldContainer[StringValues]
    def __init__(self, v: _Optional[_Iterable[_Union[StringValues, _Mapping]]] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("model", "inputs", "event_time", "min_offset", "request_ids", "version", "return_features", "explain")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    MIN_OFFSET_FIELD_NUMBER: _ClassVar[int]
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RETURN_FEATURES_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    model: str
    inputs: _containers.RepeatedCompositeFieldContainer[Column]
    event_time: int
    min_offset: str
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    version: str
    return_features: bool
    explain: bool
    def __init__(self, model: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[Column, _Mapping]]] = ..., event_time: _Optional[int] = ..., min_offset: _Optional[str] = ..., request_ids: _Optional[_Iterable[str]] = ..., version: _Optional[str] = ..., return_features: _Optional[bool] = ..., explain: _Optional[bool] = ...) -> None: ...

class PredictReply(_message.Message):
    __slots__ = ("model", "prediction_ids", "versions", "arms", "outputs", "output_width", "decisions", "features", "plan", "explanations")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_IDS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_WIDTH_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    EXPLANATIONS_FIELD_NUMBER: _ClassVar[int]
    model: str
    prediction_ids: _containers.RepeatedScalarFieldContainer[bytes]
    versions: _containers.RepeatedScalarFieldContainer[str]
    arms: _containers.RepeatedScalarFieldContainer[str]
    outputs: _containers.RepeatedScalarFieldContainer[float]
    output_width: int
    decisions: _containers.RepeatedScalarFieldContainer[str]
    features: _containers.RepeatedScalarFieldContainer[bytes]
    plan: int
    explanations: _containers.RepeatedCompositeFieldContainer[Explanation]
    def __init__(self, model: _Optional[str] = ..., prediction_ids: _Optional[_Iterable[bytes]] = ..., versions: _Optional[_Iterable[str]] = ..., arms: _Optional[_Iterable[str]] = ..., outputs: _Optional[_Iterable[float]] = ..., output_width: _Optional[int] = ..., decisions: _Optional[_Iterable[str]] = ..., features: _Optional[_Iterable[bytes]] = ..., plan: _Optional[int] = ..., explanations: _Optional[_Iterable[_Union[Explanation, _Mapping]]] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("method", "features", "attributions", "base", "errors")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    method: str
    features: _containers.RepeatedScalarFieldContainer[str]
    attributions: _containers.RepeatedScalarFieldContainer[float]
    base: _containers.RepeatedScalarFieldContainer[float]
    errors: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, method: _Optional[str] = ..., features: _Optional[_Iterable[str]] = ..., attributions: _Optional[_Iterable[float]] = ..., base: _Optional[_Iterable[float]] = ..., errors: _Optional[_Iterable[float]] = ...) -> None: ...

class FeedbackRequest(_message.Message):
    __slots__ = ("truths",)
    TRUTHS_FIELD_NUMBER: _ClassVar[int]
    truths: _containers.RepeatedCompositeFieldContainer[Truth]
    def __init__(self, truths: _Optional[_Iterable[_Union[Truth, _Mapping]]] = ...) -> None: ...

class Truth(_message.Message):
    __slots__ = ("prediction_id", "name", "value", "event_time", "source")
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    prediction_id: bytes
    name: str
    value: float
    event_time: int
    source: str
    def __init__(self, prediction_id: _Optional[bytes] = ..., name: _Optional[str] = ..., value: _Optional[float] = ..., event_time: _Optional[int] = ..., source: _Optional[str] = ...) -> None: ...

class FeedbackReply(_message.Message):
    __slots__ = ("accepted",)
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    def __init__(self, accepted: _Optional[int] = ...) -> None: ...

class GetFeaturesRequest(_message.Message):
    __slots__ = ("service", "inputs", "event_time", "min_offset", "packed")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    MIN_OFFSET_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    service: str
    inputs: _containers.RepeatedCompositeFieldContainer[Column]
    event_time: int
    min_offset: str
    packed: bool
    def __init__(self, service: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[Column, _Mapping]]] = ..., event_time: _Optional[int] = ..., min_offset: _Optional[str] = ..., packed: _Optional[bool] = ...) -> None: ...

class GetFeaturesReply(_message.Message):
    __slots__ = ("service", "features", "status", "packed")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    service: str
    features: _containers.RepeatedCompositeFieldContainer[Column]
    status: bytes
    packed: bytes
    def __init__(self, service: _Optional[str] = ..., features: _Optional[_Iterable[_Union[Column, _Mapping]]] = ..., status: _Optional[bytes] = ..., packed: _Optional[bytes] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("batches",)
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    batches: _containers.RepeatedCompositeFieldContainer[EventBatch]
    def __init__(self, batches: _Optional[_Iterable[_Union[EventBatch, _Mapping]]] = ...) -> None: ...

class EventBatch(_message.Message):
    __slots__ = ("source", "columns", "event_times", "created_times")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIMES_FIELD_NUMBER: _ClassVar[int]
    CREATED_TIMES_FIELD_NUMBER: _ClassVar[int]
    source: str
    columns: _containers.RepeatedCompositeFieldContainer[Column]
    event_times: _containers.RepeatedScalarFieldContainer[int]
    created_times: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, source: _Optional[str] = ..., columns: _Optional[_Iterable[_Union[Column, _Mapping]]] = ..., event_times: _Optional[_Iterable[int]] = ..., created_times: _Optional[_Iterable[int]] = ...) -> None: ...

class PushReply(_message.Message):
    __slots__ = ("offset", "accepted")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    offset: str
    accepted: int
    def __init__(self, offset: _Optional[str] = ..., accepted: _Optional[int] = ...) -> None: ...
