"""What each method and each route needs. What is not here cannot be served with access on.

Methods of Triton that are not served yet stand here as well: they must not become open by being
added.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from server.access.principal import Scope
from server.protocol.oip_grpc import SERVICE, parse


class On(Enum):
    """Where the name comes from that the scope must be on."""

    NOTHING = "nothing"  # the scope on any name will do
    EVERYTHING = "everything"  # the scope on every name
    ASKED = "asked"  # the handler asks when it has read the call
    NAMED = "named"  # in the request, where the guard finds it


@dataclass(frozen=True, slots=True)
class Need:
    """The scope of a method; None: everybody. `name_of` reads a gRPC message."""

    scope: Scope | None
    on: On = On.NOTHING
    name_of: Callable[[bytes], str] | None = None


OPEN = Need(None)


def _named(scope: Scope, message: Any, field: str) -> Need:
    def name_of(data: bytes) -> str:
        name: str = getattr(parse(message, data), field)
        return name

    return Need(scope, On.NAMED, name_of)


_REFLECTION = ("grpc.reflection.v1", "grpc.reflection.v1alpha")
METHODS: dict[str, Need] = {
    "/grpc.health.v1.Health/Check": OPEN,
    "/grpc.health.v1.Health/Watch": OPEN,
    **{
        f"/{package}.ServerReflection/ServerReflectionInfo": Need(Scope.METADATA)
        for package in _REFLECTION
    },
    f"{SERVICE}ServerLive": OPEN,
    f"{SERVICE}ServerReady": OPEN,
    f"{SERVICE}ServerMetadata": Need(Scope.METADATA),
    f"{SERVICE}ModelReady": _named(Scope.METADATA, pb.ModelReadyRequest, "name"),
    f"{SERVICE}ModelMetadata": _named(Scope.METADATA, pb.ModelMetadataRequest, "name"),
    f"{SERVICE}ModelConfig": _named(Scope.METADATA, pb.ModelConfigRequest, "name"),
    f"{SERVICE}ModelStatistics": _named(Scope.STATISTICS, pb.ModelStatisticsRequest, "name"),
    f"{SERVICE}RepositoryIndex": Need(Scope.METADATA, On.EVERYTHING),
    f"{SERVICE}RepositoryModelLoad": _named(
        Scope.CONTROL, pb.RepositoryModelLoadRequest, "model_name"
    ),
    f"{SERVICE}RepositoryModelUnload": _named(
        Scope.CONTROL, pb.RepositoryModelUnloadRequest, "model_name"
    ),
    f"{SERVICE}ModelInfer": Need(Scope.INFER, On.ASKED),
    f"{SERVICE}ModelStreamInfer": Need(Scope.INFER, On.ASKED),
    **{
        f"{SERVICE}{kind}SharedMemory{what}": Need(Scope.ADMIN)
        for kind in ("System", "Cuda")
        for what in ("Status", "Register", "Unregister")
    },
    f"{SERVICE}TraceSetting": Need(Scope.ADMIN),
    f"{SERVICE}LogSettings": Need(Scope.ADMIN),
    "/headrace.v1.Predictions/Predict": Need(Scope.PREDICT, On.ASKED),
    "/headrace.v1.Predictions/Explain": Need(Scope.PREDICT, On.ASKED),
    "/headrace.v1.Predictions/Feedback": Need(Scope.FEEDBACK),
    "/headrace.v1.Features/GetFeatures": Need(Scope.FEATURES, On.ASKED),
    "/headrace.v1.Features/Push": Need(Scope.PUSH, On.ASKED),
}
_METADATA_NAMED = Need(Scope.METADATA, On.NAMED)
_STATISTICS_NAMED = Need(Scope.STATISTICS, On.NAMED)
_CONTROL_NAMED = Need(Scope.CONTROL, On.NAMED)
_INFER_NAMED = Need(Scope.INFER, On.NAMED)
ROUTES: dict[str, Need] = {
    "GET /v2": Need(Scope.METADATA),
    "GET /v2/health/live": OPEN,
    "GET /v2/health/ready": OPEN,
    "GET /v2/models/stats": Need(Scope.STATISTICS, On.EVERYTHING),
    "GET /v2/models/{model}": _METADATA_NAMED,
    "GET /v2/models/{model}/ready": _METADATA_NAMED,
    "GET /v2/models/{model}/config": _METADATA_NAMED,
    "GET /v2/models/{model}/stats": _STATISTICS_NAMED,
    "POST /v2/models/{model}/infer": _INFER_NAMED,
    "POST /v2/models/{model}/generate": _INFER_NAMED,
    "POST /v2/models/{model}/generate_stream": _INFER_NAMED,
    "POST /v2/repository/index": Need(Scope.METADATA, On.EVERYTHING),
    "POST /v2/repository/models/{model}/load": _CONTROL_NAMED,
    "POST /v2/repository/models/{model}/unload": _CONTROL_NAMED,
    "POST /v1/predict": Need(Scope.PREDICT, On.ASKED),
    "POST /v1/explain": Need(Scope.PREDICT, On.ASKED),
    "POST /v1/feedback": Need(Scope.FEEDBACK),
    "POST /v1/features": Need(Scope.FEATURES, On.ASKED),
    "POST /v1/push": Need(Scope.PUSH, On.ASKED),
}
_VERSION = re.compile(r"\(\?:/versions/.*?\)\)\?(?=/|$)")
_GROUP = re.compile(r"\(\?P<(\w+)>(?:[^()]|\([^()]*\))*\)")


def readable(pattern: str) -> str:
    """Return a route's pattern for people: named groups as `{name}`, without the version."""
    return _GROUP.sub(r"{\1}", _VERSION.sub("", pattern))


def need_of_route(method: str, pattern: str) -> Need:
    """Return what a route needs. KeyError: nobody has decided."""
    path = readable(pattern)
    if path.startswith(("/v2/systemsharedmemory", "/v2/cudasharedmemory", "/v2/logging")):
        return Need(Scope.ADMIN)
    if path.endswith("/trace/setting"):
        return Need(Scope.ADMIN)
    if path.startswith("/v2/repository/[^/]+/"):  # of named repositories, which there are none of
        return Need(Scope.CONTROL)
    return ROUTES[f"{method} {path}"]
