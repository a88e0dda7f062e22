from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListWorkersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListWorkersReply(_message.Message):
    __slots__ = ("workers",)
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[Worker]
    def __init__(self, workers: _Optional[_Iterable[_Union[Worker, _Mapping]]] = ...) -> None: ...

class Worker(_message.Message):
    __slots__ = ("worker", "pid", "ready", "grpc", "http", "metrics")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    GRPC_FIELD_NUMBER: _ClassVar[int]
    HTTP_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    worker: int
    pid: int
    ready: bool
    grpc: str
    http: str
    metrics: str
    def __init__(self, worker: _Optional[int] = ..., pid: _Optional[int] = ..., ready: _Optional[bool] = ..., grpc: _Optional[str] = ..., http: _Optional[str] = ..., metrics: _Optional[str] = ...) -> None: ...

class DrainWorkerRequest(_message.Message):
    __slots__ = ("worker",)
    WORKER_FIELD_NUMBER: _ClassVar[int]
    worker: int
    def __init__(self, worker: _Optional[int] = ...) -> None: ...

class TraceWorkerRequest(_message.Message):
    __slots__ = ("worker", "seconds")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    worker: int
    seconds: float
    def __init__(self, worker: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class TraceWorkerReply(_message.Message):
    __slots__ = ("looks", "interval_ms", "busy", "stacks", "longest")
    LOOKS_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    STACKS_FIELD_NUMBER: _ClassVar[int]
    LONGEST_FIELD_NUMBER: _ClassVar[int]
    looks: int
    interval_ms: float
    busy: float
    stacks: _containers.RepeatedCompositeFieldContainer[StackShare]
    longest: _containers.RepeatedCompositeFieldContainer[Hold]
    def __init__(self, looks: _Optional[int] = ..., interval_ms: _Optional[float] = ..., busy: _Optional[float] = ..., stacks: _Optional[_Iterable[_Union[StackShare, _Mapping]]] = ..., longest: _Optional[_Iterable[_Union[Hold, _Mapping]]] = ...) -> None: ...

class StackShare(_message.Message):
    __slots__ = ("share", "stack")
    SHARE_FIELD_NUMBER: _ClassVar[int]
    STACK_FIELD_NUMBER: _ClassVar[int]
    share: float
    stack: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, share: _Optional[float] = ..., stack: _Optional[_Iterable[str]] = ...) -> None: ...

class Hold(_message.Message):
    __slots__ = ("ms", "stack")
    MS_FIELD_NUMBER: _ClassVar[int]
    STACK_FIELD_NUMBER: _ClassVar[int]
    ms: float
    stack: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ms: _Optional[float] = ..., stack: _Optional[_Iterable[str]] = ...) -> None: ...

class ReloadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsReply(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelState]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelState, _Mapping]]] = ...) -> None: ...

class ModelState(_message.Message):
    __slots__ = ("name", "version", "state", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    state: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class LoadModelReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class UnloadModelReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetLimitsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Limits(_message.Message):
    __slots__ = ("limits",)
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    limits: _containers.RepeatedCompositeFieldContainer[Limit]
    def __init__(self, limits: _Optional[_Iterable[_Union[Limit, _Mapping]]] = ...) -> None: ...

class Limit(_message.Message):
    __slots__ = ("tenant", "names", "requests_per_s", "burst", "rows_per_s", "concurrent")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    BURST_FIELD_NUMBER: _ClassVar[int]
    ROWS_PER_S_FIELD_NUMBER: _ClassVar[int]
    CONCURRENT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    names: _containers.RepeatedScalarFieldContainer[str]
    requests_per_s: float
    burst: float
    rows_per_s: float
    concurrent: int
    def __init__(self, tenant: _Optional[str] = ..., names: _Optional[_Iterable[str]] = ..., requests_per_s: _Optional[float] = ..., burst: _Optional[float] = ..., rows_per_s: _Optional[float] = ..., concurrent: _Optional[int] = ...) -> None: ...

class GetLoggingRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Logging(_message.Message):
    __slots__ = ("log_info", "log_warning", "log_error", "log_verbose_level", "log_file", "log_format")
    LOG_INFO_FIELD_NUMBER: _ClassVar[int]
    LOG_WARNING_FIELD_NUMBER: _ClassVar[int]
    LOG_ERROR_FIELD_NUMBER: _ClassVar[int]
    LOG_VERBOSE_LEVEL_FIELD_NUMBER: _ClassVar[int]
    LOG_FILE_FIELD_NUMBER: _ClassVar[int]
    LOG_FORMAT_FIELD_NUMBER: _ClassVar[int]
    log_info: bool
    log_warning: bool
    log_error: bool
    log_verbose_level: int
    log_file: str
    log_format: str
    def __init__(self, log_info: _Optional[bool] = ..., log_warning: _Optional[bool] = ..., log_error: _Optional[bool] = ..., log_verbose_level: _Optional[int] = ..., log_file: _Optional[str] = ..., log_format: _Optional[str] = ...) -> None: ...
