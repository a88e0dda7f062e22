"""What needs what: nothing can be served that no table knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from tritonclient.grpc import service_pb2 as pb

from headrace.errors import InvalidArgumentError
from server.access.guard import GuardedRoutes, guarded_handlers
from server.access.needs import METHODS, ROUTES, need_of_route, readable
from server.access.principal import Scope
from server.wire.handlers import Context
from server.wire.routes import Request, Response
from server.worker import Worker, WorkerConfig
from tests.server.access.test_gate import STORED, gate


async def _method(_: bytes, __: Context) -> bytes:
    return b""


async def _route(_: Request) -> Response:
    return Response()


def test_what_nobody_has_decided_about_cannot_be_served() -> None:
    found, _ = gate()
    with pytest.raises(KeyError, match="New/Method"):
        guarded_handlers({"/x.New/Method": _method}, found, admin_only=False)
    with pytest.raises(KeyError, match="POST /v2/new"):
        GuardedRoutes(found, admin_only=False).add("POST", "/v2/new", _route)
    with pytest.raises(KeyError, match="DELETE /v2/health/live"):
        GuardedRoutes(found, admin_only=False).add("DELETE", "/v2/health/live", _route)


@pytest.mark.parametrize("transport", ["headrace", "grpcio"])
async def test_every_method_and_route_of_a_worker_is_decided_about(
    tmp_path: Path, transport: str
) -> None:
    path = tmp_path / "access.toml"
    path.write_text(f'[[principals]]\nname = "a"\nkeys = ["{STORED}"]\nallow = []\n')
    folder = str(tmp_path)
    Worker(
        WorkerConfig(
            worker=0, host="127.0.0.1", grpc_port=0, http_port=0, metrics_port=0, data_dir=folder,
            model_repository=folder, transport=transport, access=str(path),
        ),
        {},
    )  # fmt: skip


def test_only_health_is_open() -> None:
    open_ones = [name for name, need in {**METHODS, **ROUTES}.items() if need.scope is None]
    assert all("ealth" in name or "Server" in name for name in open_ones)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("/v2", "/v2"),
        (r"/v2/models/(?P<model>[^/]+)", "/v2/models/{model}"),
        (
            (
                r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[0-9]+|sha256(?::|%3[Aa])[0-9a-f]"
                r"{64}))?/infer"
            ),
            "/v2/models/{model}/infer",
        ),
    ],
)
def test_a_pattern_for_people(pattern: str, text: str) -> None:
    assert readable(pattern) == text


def test_what_concerns_the_server_needs_admin() -> None:
    for path in ("/v2/logging", "/v2/systemsharedmemory/status", "/v2/trace/setting"):
        assert need_of_route("POST", path).scope is Scope.ADMIN


def test_the_name_is_what_the_handler_will_read() -> None:
    need = METHODS["/inference.GRPCInferenceService/ModelConfig"]
    assert need.name_of is not None
    twice = pb.ModelConfigRequest(name="a").SerializeToString()
    twice += pb.ModelConfigRequest(name="b").SerializeToString()
    assert need.name_of(twice) == "b" == pb.ModelConfigRequest.FromString(twice).name
    with pytest.raises(InvalidArgumentError):
        need.name_of(b"\xff")
