"""The logging extension, by what tritonclient sends and Triton's own tests expect."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from headrace.errors import HeadraceError, InvalidArgumentError, UnavailableError
from server import logs
from server.protocol.oip_logging import LogCalls
from server.wire.handlers import Context
from server.wire.routes import Request, Response, Route, Routes

AT_START = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}


class World:
    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.calls = LogCalls(self._tell)
        self.routes = Routes()
        self.calls.add_to(self.routes)
        (self.handler,) = self.calls.table().values()

    async def _tell(self, changed: dict[str, Any]) -> None:
        self.told.append(changed)

    async def rest(self, method: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        route, params = self.routes.resolve(method, "/v2/logging")
        assert isinstance(route, Route)
        data = b"" if body is None else json.dumps(body).encode()
        request = Request(method, "/v2/logging", {}, {}, data, params)
        response: Response = await route.handler(request)
        assert isinstance(response.body, bytes)
        return response.status, json.loads(response.body)

    async def grpc(self, **settings: Any) -> dict[str, Any]:
        request = pb.LogSettingsRequest()
        for name, (field, value) in settings.items():
            if value is None:
                request.settings[name].SetInParent()
            else:
                setattr(request.settings[name], field, value)
        assert callable(self.handler)
        answer = pb.LogSettingsResponse.FromString(
            await self.handler(request.SerializeToString(), Context())
        )
        return {
            name: getattr(setting, setting.WhichOneof("parameter_choice"))
            for name, setting in answer.settings.items()
        }


@pytest.fixture
def world() -> Iterator[World]:
    yield World()
    logs.switch(logs.Switches())


async def test_both_wires_tell_the_same_and_change_this_process(world: World) -> None:
    assert await world.rest("GET") == (200, AT_START)
    assert await world.grpc() == AT_START
    assert world.told == []
    changed = AT_START | {"log_info": False, "log_verbose_level": 2, "log_format": "ISO8601"}
    asked = {"log_info": False, "log_verbose_level": 2, "log_format": "ISO8601"}
    assert await world.rest("POST", asked | {"log_error": None}) == (200, changed)
    assert logs.switches() == logs.Switches(info=False, verbose=2)
    assert world.told == [asked]
    back = {"log_info": ("bool_param", True), "log_verbose_level": ("uint32_param", 0)}
    assert await world.grpc(**back) == AT_START | {"log_format": "ISO8601"}
    assert world.told[1] == {"log_info": True, "log_verbose_level": 0}
    assert logs.switches() == logs.Switches()


@pytest.mark.parametrize(
    ("wanted", "status", "text"),
    [
        ({"log_file": "x.log"}, 501,
         "log file location can not be updated through network protocol"),
        ({"log_format": "odd"}, 503, "invalid argument for --log_format, got: odd"),
        ({"log_info": 1}, 400, "expect boolean for 'log_info'"),
        ({"log_verbose_level": True}, 400, "expect uint32 for 'log_verbose_level'"),
        ({"log_verbose_level": -1}, 400, "'log_verbose_level' is out of range"),
        ({"log_everything": True}, 400, "unknown log setting 'log_everything'"),
    ],
)  # fmt: skip
async def test_what_is_refused_changes_nothing(
    world: World, wanted: dict[str, Any], status: int, text: str
) -> None:
    told, answer = await world.rest("POST", {"log_warning": False} | wanted)
    assert told == status
    assert answer["error"].startswith(text)
    assert world.told == []
    assert await world.rest("GET") == (200, AT_START)


async def test_grpc_refuses_a_setting_of_another_kind(world: World) -> None:
    with pytest.raises(InvalidArgumentError, match="expect boolean for 'log_info'"):
        await world.grpc(log_info=("string_param", "yes"))
    # Triton looks only whether it is named.
    with pytest.raises(HeadraceError, match="log file location can not be updated"):
        await world.grpc(log_file=("string_param", None))


async def test_where_nobody_passes_it_on_nothing_is_changed() -> None:
    def alone(_: dict[str, Any]) -> Awaitable[None]:
        raise UnavailableError("the supervisor is gone")

    calls = LogCalls(alone)
    with pytest.raises(UnavailableError):
        await calls.change({"log_info": False})
    assert logs.switches() == logs.Switches()
