"""REST and gRPC are doors to the same operations: what one answers or refuses the other does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import message_factory
from google.protobuf.json_format import MessageToDict, ParseDict

from headrace.errors import HeadraceError, NotFoundError
from server.access.budgets import Limit
from server.access.file import AccessFile
from server.access.gate import Gate
from server.access.keys import new_key
from server.access.principal import Principal, Rule, Scope
from server.admin.app import AdminApi
from server.admin.document import OPERATIONS, PREFIX, Operation, openapi
from server.admin.grpc_door import SERVICE, AdminCalls
from server.admin.operations import Operations
from server.pb import admin_pb2
from server.wire.handlers import Context
from server.wire.routes import Request, Route
from tests.server.admin.schema_check import check

METHODS = admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods_by_name
BY_NAME = {operation.name: operation for operation in OPERATIONS}
TRACE = {
    "looks": 100, "interval_ms": 2.0, "busy": 0.5,
    "stacks": [{"share": 0.5, "stack": ["a.b:1", "c.d:2"]}],
    "longest": [{"ms": 40.0, "stack": ["a.b:1"]}],
}  # fmt: skip
# What each operation is asked with; others take nothing.
ASKED: dict[str, dict[str, Any]] = {
    "drain_worker": {"worker": 0},
    "trace": {"worker": 1, "seconds": 0.5},
    "load": {"model": "mlp"},
    "unload": {"model": "mlp"},
    "set_limits": {"limits": [{"tenant": "a", "names": ["m"], "rows_per_s": 5.0, "concurrent": 2}]},
    "set_logging": {"log_info": False, "log_verbose_level": 0},
}


class Fleet:
    """Two workers that answer what they are asked; `did` is what was done to them."""

    def __init__(self) -> None:
        self.did: list[Any] = []

    def listed(self) -> list[dict[str, Any]]:
        addresses = {"grpc": "127.0.0.1:1", "http": "127.0.0.1:2", "metrics": "127.0.0.1:3"}
        return [
            {"worker": 1, "pid": 7, "ready": True, **addresses},
            {"worker": 2, "pid": 8, "ready": True},
        ]

    async def drain(self, number: int) -> None:
        if number > 1:
            raise NotFoundError(f"there is no worker {number} that is ready")
        self.did.append(("drain", number))

    async def ask(self, number: int | None, what: str, timeout_s: float, **arguments: Any) -> Any:
        self.did.append((what, number, arguments))
        if what == "trace":
            return TRACE
        if what == "index":
            return [{"name": "m", "version": "1", "state": "READY", "reason": ""}]
        switches = {"log_info": False, "log_warning": True, "log_error": True}
        return {**switches, "log_verbose_level": 0, "log_file": "", "log_format": "default"}

    async def change_model(self, operation: str, name: str) -> None:
        self.did.append((operation, name))

    async def change(self, name: str, value: dict[str, Any]) -> None:
        self.did.append((name, value))

    def reload(self) -> None:
        self.did.append("reload")

    def end(self) -> None:
        self.did.append("end")


KEYS = {name: new_key(lambda count, at=at: bytes([at]) * count) for at, name in enumerate("ou")}


def gate() -> Gate:
    owner = Principal("owner", "owner", (Rule(frozenset({Scope.ADMIN})),))
    user = Principal("user", "user", (Rule(frozenset({Scope.INFER})),))
    keys = {KEYS[at][1].key_id: (KEYS[at][1], who) for at, who in (("o", owner), ("u", user))}
    return Gate(AccessFile(keys, None, [Limit("user", requests_per_s=3.0)]))


class World:
    def __init__(self, access: Gate | None) -> None:
        self.fleet = Fleet()
        operations = Operations(self.fleet, lambda: access)
        self.routes = AdminApi(operations, "127.0.0.1").routes()
        self.calls = AdminCalls(operations).table()

    async def rest(
        self, operation: Operation, asked: dict[str, Any], key: str | None = KEYS["o"][0]
    ) -> tuple[str, Any]:
        """The code ("" for none) and the answer."""
        asked = dict(asked)
        path = PREFIX + operation.path
        for name in ("worker", "model"):
            if f"{{{name}}}" in path:
                path = path.replace(f"{{{name}}}", str(asked.pop(name)))
        query = {name: str(asked.pop(name)) for name, *_ in operation.query if name in asked}
        body = asked if operation.bare is None else asked.get(operation.bare)
        headers = {"host": "127.0.0.1", "content-type": "application/json"}
        headers |= {"x-api-key": key} if key else {}
        route, params = self.routes.resolve(operation.method, path)
        assert isinstance(route, Route), path
        data = json.dumps(body).encode()
        answer = await route.handler(Request(operation.method, path, query, headers, data, params))
        assert isinstance(answer.body, bytes)
        value = json.loads(answer.body)
        if answer.status >= 400:
            return value["code"], value["error"]
        return "", value if operation.bare is None else {operation.bare: value}

    async def grpc(
        self, operation: Operation, asked: dict[str, Any], key: str | None = KEYS["o"][0]
    ) -> tuple[str, Any]:
        method = METHODS[operation.rpc]
        request = ParseDict(asked, message_factory.GetMessageClass(method.input_type)())
        reply = message_factory.GetMessageClass(method.output_type)
        handler: Any = self.calls[f"/{SERVICE}/{operation.rpc}"]
        context = Context(fields=[("x-api-key", key)] if key else [])
        try:
            data = await handler(request.SerializeToString(), context)
        except HeadraceError as error:
            return error.code, error.message
        return "", MessageToDict(
            reply.FromString(data), preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )  # fmt: skip


def test_every_operation_is_a_method_and_every_method_an_operation() -> None:
    assert sorted(METHODS.keys()) == sorted(each.rpc for each in OPERATIONS)


def bare(value: Any) -> Any:
    """Without what is empty, as proto3 has nothing else for it."""
    if isinstance(value, dict):
        found = {name: bare(each) for name, each in value.items()}
        return {name: each for name, each in found.items() if each not in ("", [], 0, False)}
    return [bare(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", BY_NAME)
async def test_both_do_and_answer_the_same(name: str) -> None:
    one, other = World(gate()), World(gate())
    rest = await one.rest(BY_NAME[name], ASKED.get(name, {}))
    grpc = await other.grpc(BY_NAME[name], ASKED.get(name, {}))
    assert rest[0] == grpc[0] == ""
    assert bare(rest[1]) == bare(grpc[1])
    assert one.fleet.did == other.fleet.did


@pytest.mark.parametrize("name", BY_NAME)
async def test_what_is_taken_and_answered_is_as_the_document_says(name: str) -> None:
    operation, document = BY_NAME[name], openapi()
    components = document["components"]["schemas"]
    entry = document["paths"][PREFIX + operation.path][operation.method.lower()]
    asked = ASKED.get(name, {})
    _, answer = await World(gate()).rest(operation, asked)
    value = answer if operation.bare is None else answer[operation.bare]
    content = entry["responses"][str(operation.status)]["content"]
    check(value, content["application/json"]["schema"], components)
    given = {each["name"]: each["schema"] for each in entry["parameters"]}
    for parameter, schema in given.items():
        check(asked[parameter], schema, components)
    if operation.body is not None:
        schema = entry["requestBody"]["content"]["application/json"]["schema"]
        body = asked if operation.bare is None else asked[operation.bare]
        check(body, schema, components)


@pytest.mark.parametrize("name", BY_NAME)
def test_the_answer_of_the_document_has_the_fields_of_the_message(name: str) -> None:
    operation, components = BY_NAME[name], openapi()["components"]["schemas"]
    schema = components[operation.answer]
    names = {operation.bare} if operation.bare is not None else set(schema["properties"])
    assert names == set(METHODS[operation.rpc].output_type.fields_by_name)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("drain_worker", {"worker": 7}, "not_found"),
    ("trace", {"worker": 1, "seconds": 61.0}, "invalid_argument"),
    ("trace", {"worker": 1, "seconds": "NaN"}, "invalid_argument"),
    ("set_limits", {"limits": [{"tenant": "a"}]}, "invalid_argument"),
    ("set_limits", {"limits": [{"concurrent": 0}]}, "invalid_argument"),
    ("set_logging", {"log_file": "x"}, "invalid_argument"),
    ("set_logging", {"log_verbose_level": 2**31}, "invalid_argument"),
]


@pytest.mark.parametrize(("name", "asked", "code"), REFUSED)
async def test_both_refuse_the_same(name: str, asked: dict[str, Any], code: str) -> None:
    world = World(gate())
    assert (await world.rest(BY_NAME[name], asked))[0] == code
    assert (await world.grpc(BY_NAME[name], asked))[0] == code
    assert world.fleet.did == []


@pytest.mark.parametrize("name", BY_NAME)
async def test_both_let_in_who_has_the_scope(name: str) -> None:
    world = World(gate())
    for key, code in ((None, "unauthenticated"), (KEYS["u"][0], "permission_denied")):
        for door in (world.rest, world.grpc):
            assert (await door(BY_NAME[name], ASKED.get(name, {}), key))[0] == code
    assert world.fleet.did == []


async def test_a_worker_is_never_chosen_by_saying_none() -> None:
    world = World(None)
    for name in ("drain_worker", "trace"):
        assert (await world.grpc(BY_NAME[name], {}, None))[0] == "invalid_argument"
    assert (await world.grpc(BY_NAME["limits"], {}, None))[0] == "not_found"


@pytest.mark.parametrize("name", ["set_limits", "set_logging"])
@pytest.mark.parametrize("body", [b"\xff", b'["\xff"]', b'{"log_info": "\xff"}', b"[" * 9000, b""])
async def test_a_body_that_is_no_json_is_the_callers_fault(name: str, body: bytes) -> None:
    world = World(gate())
    operation = BY_NAME[name]
    route, _ = world.routes.resolve(operation.method, PREFIX + operation.path)
    assert isinstance(route, Route)
    headers = {"x-api-key": KEYS["o"][0], "content-type": "application/json"}
    answer = await route.handler(Request(operation.method, "", {}, headers, body))
    assert answer.status == 400
    assert world.fleet.did == []


async def test_bytes_that_are_no_message_are_the_callers_fault() -> None:
    world = World(gate())
    handler: Any = world.calls[f"/{SERVICE}/LoadModel"]
    with pytest.raises(HeadraceError, match=r"not a headrace\.v1\.LoadModelRequest"):
        await handler(b"\xff", Context(fields=[("x-api-key", KEYS["o"][0])]))


async def test_reflection_wants_the_scope_and_health_is_open() -> None:
    world = World(gate())
    reflection: Any = world.calls["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"]

    async def questions() -> Any:
        return
        yield b""

    with pytest.raises(HeadraceError, match="lacks scope 'admin'"):
        await anext(reflection.call(questions(), Context(fields=[("x-api-key", KEYS["u"][0])])))
    check: Any = world.calls["/grpc.health.v1.Health/Check"]
    assert await check(b"", Context()) == b"\x08\x01"
