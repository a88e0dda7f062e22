"""The trace extension, by what tritonclient sends: values are text, in gRPC lists of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from headrace.errors import InvalidArgumentError, UnavailableError
from server.protocol.oip_tracing import TraceCalls
from server.tracing.rules import Rule
from server.tracing.tracer import Tracer
from server.wire.handlers import Context
from server.wire.routes import Request, Route, Routes

AT_START = {
    "trace_level": ["TIMESTAMPS"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "trace_mode": "opentelemetry",
}


class World:
    def __init__(self, *, available: bool = True) -> None:
        self.told: list[dict[str, Any]] = []
        self.changes = 0
        self.tracer = Tracer(lambda _: None, lambda: 0.5)
        self.calls = TraceCalls(
            self.tracer,
            Rule(on=available),
            lambda name: name == "m",
            self._changed,
            self._tell,
            available=available,
        )
        self.routes = Routes()
        self.calls.add_to(self.routes)
        (self.handler,) = self.calls.table().values()

    async def _tell(self, changed: dict[str, Any]) -> None:
        self.told.append(changed)

    def _changed(self) -> None:
        self.changes += 1

    async def rest(self, model: str = "", body: dict[str, Any] | None = None) -> tuple[int, Any]:
        path = f"/v2/models/{model}/trace/setting" if model else "/v2/trace/setting"
        method = "GET" if body is None else "POST"
        route, params = self.routes.resolve(method, path)
        assert isinstance(route, Route)
        data = b"" if body is None else json.dumps(body).encode()
        response = await route.handler(Request(method, path, {}, {}, data, params))
        assert isinstance(response.body, bytes)
        return response.status, json.loads(response.body)

    async def grpc(self, model: str = "", **settings: list[str]) -> dict[str, Any]:
        request = pb.TraceSettingRequest(model_name=model)
        for name, values in settings.items():
            request.settings[name].value.extend(values)
        assert callable(self.handler)
        answer = pb.TraceSettingResponse.FromString(
            await self.handler(request.SerializeToString(), Context())
        )
        found: dict[str, Any] = {name: list(s.value) for name, s in answer.settings.items()}
        return {name: v if name == "trace_level" else v[0] for name, v in found.items()}


async def test_both_wires_tell_the_same_and_change_the_rules() -> None:
    world = World()
    assert await world.rest() == (200, AT_START)
    assert await world.grpc() == AT_START
    assert await world.grpc("m") == AT_START
    assert world.told == []
    status, changed = await world.rest(body={"trace_rate": "1", "trace_count": 2})
    assert (status, changed) == (200, AT_START | {"trace_rate": "1", "trace_count": "2"})
    assert world.told == [{"": {"trace_rate": 1, "trace_count": 2}}]
    assert world.tracer.begin("m", None) is not None
    assert (await world.grpc())["trace_count"] == "1"  # as in Triton: what is left
    off = await world.grpc(trace_level=["OFF"])
    assert off["trace_level"] == ["OFF"]
    assert not world.tracer.on
    # Null, and in gRPC no value: back to what held at the start.
    assert await world.grpc(trace_level=[], trace_rate=[], trace_count=[]) == AT_START
    assert world.tracer.on
    assert world.changes == 4


async def test_a_models_settings_stand_over_those_for_all() -> None:
    world = World()
    assert (await world.grpc("m", trace_rate=["7"]))["trace_rate"] == "7"
    assert (await world.rest("m"))[1] == AT_START | {"trace_rate": "7"}
    assert (await world.rest())[1] == AT_START
    await world.rest(body={"trace_level": ["OFF"], "trace_rate": "9"})
    assert (await world.rest("m"))[1] == AT_START | {"trace_rate": "7", "trace_level": ["OFF"]}
    assert (await world.rest("m", {"trace_rate": None}))[1]["trace_rate"] == "9"
    assert world.told[-1] == {"m": {}}
    other = World()
    for told in world.told:
        other.calls.apply(told)
    assert await other.rest("m") == await world.rest("m")
    assert await other.rest() == await world.rest()


@pytest.mark.parametrize(
    ("wanted", "status", "text"),
    [
        ({"trace_file": "x.json"}, 501,
         "trace file location can not be updated through network protocol"),
        ({"trace_level": ["OFF", "TIMESTAMPS"]}, 400,
         "Expect only one trace level 'OFF' is specified"),
        ({"trace_level": ["TENSORS"]}, 501, "trace level TENSORS is not supported"),
        ({"trace_level": "LOUD"}, 400, "unknown trace level"),
        ({"trace_level": []}, 400, "unknown trace level"),
        ({"trace_rate": "often"}, 400, "Unable to parse 'trace_rate', got: often"),
        ({"trace_rate": ["1", "2"]}, 400, "Unable to parse 'trace_rate', got: "),
        ({"trace_rate": "-1"}, 400, "Unable to parse 'trace_rate', value is out of range"),
        ({"trace_count": "-2"}, 400, "Unable to parse 'trace_count', value is out of range"),
        ({"trace_mode": "triton"}, 501, "the only trace_mode is 'opentelemetry'"),
        ({"trace_everything": "1"}, 400, "unknown trace setting 'trace_everything'"),
    ],
)  # fmt: skip
async def test_what_is_refused_changes_nothing(
    wanted: dict[str, Any], status: int, text: str
) -> None:
    world = World()
    told, answer = await world.rest(body={"trace_rate": "5"} | wanted)
    assert told == status
    assert answer["error"].startswith(text)
    assert world.told == []
    assert await world.rest() == (200, AT_START)


async def test_what_an_export_has_no_use_for_is_taken() -> None:
    world = World()
    await world.rest(body={"log_frequency": "50", "trace_mode": "opentelemetry"})
    assert (await world.rest())[1] == AT_START


async def test_a_model_that_nobody_knows() -> None:
    world = World()
    with pytest.raises(InvalidArgumentError, match="Request for unknown model : other"):
        await world.grpc("other")
    assert (await world.rest("other"))[0] == 400


async def test_without_a_collector_it_cannot_be_turned_on() -> None:
    world = World(available=False)
    assert (await world.rest())[1] == AT_START | {"trace_level": ["OFF"]}
    with pytest.raises(UnavailableError, match="start with --trace-endpoint"):
        await world.grpc(trace_level=["TIMESTAMPS"])
    await world.grpc(trace_rate=["1"])
    assert not world.tracer.on
