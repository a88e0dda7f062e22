"""The doors of GetFeatures against the general way: the same bytes and the same errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from features import Column
from headrace.errors import HeadraceError
from server.access.doors import grpc_admission, rest_admission
from server.access.file import AccessFile
from server.access.gate import Gate
from server.access.guard import GuardedRoutes, guarded_handlers
from server.access.principal import Principal, Rule, Scope
from server.feature_access import FeatureAccess
from server.pb import headrace_pb2 as pb
from server.predict import Clocks, Predictor
from server.protocol.columns import messages_of_table
from server.protocol.headrace_v1 import GET_FEATURES, HeadraceCalls
from server.wire.grpc.server import GrpcServer
from server.wire.handlers import Context
from server.wire.http1 import answers
from server.wire.http1.server import HttpServer
from server.wire.routes import Route, Routes
from tests.server.access.test_gate import KEY, STORED
from tests.support.rides import (
    DEFINITIONS,
    MINUTE_US,
    NOON_US,
    Rig,
    column,
    ingesting,
    rides,
    shifts,
)
from tests.support.valkey import LiveValkey

DEADLINE_EXCEEDED, UNAVAILABLE = 4, 14
LATER_US = NOON_US + 30 * MINUTE_US
VERSIONS = [
    SimpleNamespace(service=DEFINITIONS.service(name), schema_id=0, definitions=DEFINITIONS)
    for name in ("plain", "counts", "tips")
]


Said = bytes | tuple[int, str]  # a reply, or a status and what it says


class World:
    """One server with doors, and the handlers behind them. `taken` counts what the doors took."""

    def __init__(self, url: str, access: AccessFile | None = None, doors: bool = True) -> None:
        self.taken = 0
        self._executor = ThreadPoolExecutor(1)
        self.access = FeatureAccess(url, None, lambda: VERSIONS, self._executor)  # type: ignore[arg-type, return-value]
        clocks = Clocks(None, lambda: LATER_US)  # type: ignore[arg-type]
        predictor = Predictor(None, self.access, None, clocks, replay_scope=True)  # type: ignore[arg-type]
        self.calls = HeadraceCalls(predictor, None, self.access, None)  # type: ignore[arg-type]
        handlers, routes = self.calls.table(), Routes()
        grpc_gate = rest_gate = None
        self.gate = None if access is None else Gate(access)
        if self.gate is not None:
            grpc_gate, rest_gate = grpc_admission(self.gate), rest_admission(self.gate)
            handlers = guarded_handlers(handlers, self.gate, admin_only=False)
            routes = GuardedRoutes(self.gate, admin_only=False)
        self.grpc = GrpcServer(handlers)
        door = self.calls.features_door(self.grpc.tick, grpc_gate)
        self.calls.add_to(routes, rest_gate)
        route, _ = routes.resolve("POST", "/v1/features")
        assert isinstance(route, Route)
        assert route.door is not None
        self.rest_door: Any = route.door
        if doors:
            door.take = self._counting(door.take)  # type: ignore[method-assign]
            self.grpc.add_door(GET_FEATURES, door)
            self.rest_door.take = self._counting(self.rest_door.take)
        else:
            self.rest_door.lane = lambda *_: None
        self.http = HttpServer(routes)

    def _counting(self, take: Any) -> Any:
        def counted(calls: list[Any], *more: Any) -> list[Any]:
            rest: list[Any] = take(calls, *more)
            self.taken += len(calls) - len(rest)
            return rest

        return counted

    async def start(self) -> None:
        await self.grpc.start("127.0.0.1", 0)
        await self.http.start("127.0.0.1", 0)
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.grpc.port}")
        self.ask = self.channel.unary_unary(GET_FEATURES)

    async def stop(self) -> None:
        await self.channel.close()
        await self.grpc.drain(0.1)
        await self.http.drain(0.1)
        await self.access.close()
        self._executor.shutdown()

    async def generally(self, message: bytes) -> Said:
        """The answer of the handler."""
        try:
            return await self.calls._get_features(message, Context())
        except HeadraceError as error:
            return error.status.grpc, error.message

    async def by_wire(self, *messages: bytes, **options: Any) -> list[Said]:
        """The answers to calls that come in one tick, or almost."""

        async def one(message: bytes) -> Said:
            try:
                reply: bytes = await self.ask(message, **{"timeout": 10, **options})
            except grpc.aio.AioRpcError as error:
                return error.code().value[0], error.details() or ""
            return reply

        return await asyncio.gather(*map(one, messages))

    async def by_rest(self, *bodies: bytes, headers: str = "") -> list[tuple[int, bytes]]:
        """The answers to pipelined requests."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.http.port)
        for body in bodies:
            head = f"POST /v1/features HTTP/1.1\r\nHost: x\r\n{headers}"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        found = []
        for _ in bodies:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            said = dict(line.split(": ", 1) for line in lines[1:-2])
            body = await reader.readexactly(int(said["Content-Length"]))
            found.append((int(lines[0].split()[1]), body))
        writer.close()
        await writer.wait_closed()
        return found


@contextlib.asynccontextmanager
async def world(valkey: LiveValkey) -> AsyncIterator[tuple[World, Rig]]:
    async with ingesting(valkey.url) as rig:
        await rig.log.push([
            rides(*((NOON_US + n * MINUTE_US, n % 9, "Ulm", n, n / 7) for n in range(1, 29))),
            rides((NOON_US, 1, "Ulm", None, None), (NOON_US, 12, "a", 3, 2.5)),
        ])  # fmt: skip
        old_us = NOON_US - 13 * 60 * MINUTE_US
        offset = await rig.log.push(
            [shifts((NOON_US, 1, "van", 7, 4.5), (NOON_US, 2, "car", None, 0.1),
                    (old_us, 3, "bus", 40, 3.0))]
        )  # fmt: skip
        await rig.read({"driver_id": column([1], np.int64)}, LATER_US, offset, service="counts")
        found = World(valkey.url)
        await found.start()
        try:
            yield found, rig
        finally:
            await found.stop()


def request(service: str, *rows: Any, **fields: Any) -> bytes:
    """A request about drivers, or about (city, driver)."""
    if service == "counts":
        table = {"driver_id": column(list(rows), object if isinstance(rows[0], str) else np.int64)}
    else:
        cities, drivers = zip(*rows, strict=True)
        table = {"driver_id": column(list(drivers), np.int64), "city": column(list(cities), object)}
    message = pb.GetFeaturesRequest(service=service, inputs=messages_of_table(table), **fields)
    return bytes(message.SerializeToString())


PLAIN = [
    *(request("counts", driver) for driver in range(12)),
    request("counts", *range(40)),
    request("counts", "1", "2", "nobody", "1"),
    request("counts", 3, packed=True),
    request("counts", *range(9), packed=True, event_time=NOON_US + 7 * MINUTE_US),
    request("counts", 5, event_time=NOON_US),
    request("plain", ("Ulm", 1), ("Ulm", 2), ("a", 12), ("", 3), ("Ulm", 1)),
    request("plain", ("Ulm", 4), packed=True),
    request("counts", *range(700)),
]
ODD = [
    request("counts", *range(3000)),
    request("counts", "ü"),
    request("plain", ("ü", 1)),
    request("counts", 1, min_offset="0-1"),
    request("counts", 1, None),
    request("counts", 1, event_time=-5),
    request("nobody knows", ("Ulm", 1)),
    request("tips", ("Ulm", 1)),
    pb.GetFeaturesRequest(service="counts").SerializeToString(),
    b"",
    b"\x0a\xff",
    b"\x0a\x06counts\x12\x00",
    pb.GetFeaturesRequest(
        service="counts", inputs=messages_of_table({"driver_id": Column(np.arange(16_385))})
    ).SerializeToString(),
    pb.GetFeaturesRequest(
        service="counts", inputs=messages_of_table({"driver_id": Column(np.array([0.5]))})
    ).SerializeToString(),
]


async def test_both_ways_give_the_same_bytes_and_the_same_errors(valkey: LiveValkey) -> None:
    async with world(valkey) as (served, _):
        wanted = [await served.generally(message) for message in [*PLAIN, *ODD]]
        assert all(isinstance(each, bytes) for each in wanted[: len(PLAIN)])
        await served.by_wire(PLAIN[0])  # teaches the form of its head
        served.taken = 0
        assert await served.by_wire(*PLAIN, *ODD) == wanted
        assert served.taken == len(PLAIN)
        assert await served.by_wire(*[PLAIN[1]] * 600) == [wanted[1]] * 600
        assert await served.by_wire(*PLAIN[::-1]) == wanted[: len(PLAIN)][::-1]
        assert served.grpc.calls.live == 0


def json_of(message: bytes) -> bytes:
    """The same question as JSON."""
    asked = pb.GetFeaturesRequest.FromString(message)
    inputs = {c.name: list(getattr(c, c.WhichOneof("values")).v) for c in asked.inputs}
    return json.dumps({"service": asked.service, "inputs": inputs}).encode()


BODIES = [json_of(message) for message in PLAIN if b"\x28\x01" not in message]
ODD_BODIES = [
    b'{"service": "counts", "inputs": {"driver_id": [1, "2"]}}',
    b'{"service": "counts", "inputs": {"driver_id": [null, 2]}}',
    b'{"service": "counts", "inputs": {"driver_id": [true]}}',
    b'{"service": "counts", "inputs": {"driver_id": [0.5]}}',
    b'{"service": "counts", "inputs": {"driver_id": []}}',
    b'{"service": "counts", "inputs": {"driver_id": [9223372036854775808]}}',
    b'{"service": "counts", "inputs": {"driver_id": [1], "city": ["Ulm"]}}',
    b'{"service": "counts", "inputs": {}}',
    b'{"service": "counts", "inputs": {"driver_id": [1]}, "event_time": %d}' % NOON_US,
    b'{"service": "counts", "inputs": {"driver_id": [1]}, "min_offset": "x"}',
    b'{"service": "counts", "inputs": {"driver_id": ["\xc3\xbc"]}}',
    b'{"service": "plain", "inputs": {"driver_id": [1], "city": ["Ulm", "a"]}}',
    b'{"service": "counts", "inputs": {"driver_id": [1]}, "more": 1}',
    b'{"service": "nobody", "inputs": {"driver_id": [1]}}',
    b"{",
    b"",
]


async def test_both_ways_give_the_same_json(
    valkey: LiveValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(valkey) as (served, _):
        (first,) = await served.by_rest(BODIES[0])
        take = served.rest_door.take
        served.rest_door.take = lambda calls, *_: calls.copy()
        wanted = [(await served.by_rest(body))[0] for body in [*BODIES, *ODD_BODIES]]
        served.rest_door.take = take
        assert wanted[0] == first
        served.taken = 0
        assert await served.by_rest(*BODIES) == wanted[: len(BODIES)]
        assert served.taken == len(BODIES)
        with monkeypatch.context() as patched:  # as if they were large
            patched.setattr(answers, "_WRITTEN_JOINED_BYTES_MAX", 100)
            assert await served.by_rest(*BODIES) == wanted[: len(BODIES)]
        served.taken = len(BODIES)
        odd = [(await served.by_rest(body))[0] for body in ODD_BODIES]
        assert odd == wanted[len(BODIES) :]
        assert served.taken == len(BODIES)
        assert await served.by_rest(*BODIES, *ODD_BODIES) == wanted
        assert served.http.calls.live == 0


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - nothing says it
            await asyncio.sleep(0.01)


async def test_a_store_that_does_not_answer(own_valkey: LiveValkey) -> None:
    async with world(own_valkey) as (served, rig):
        rig.task.cancel()
        await served.by_wire(PLAIN[0])
        assert isinstance((await served.by_wire(PLAIN[0]))[0], bytes)
        own_valkey.pause()
        served.taken = 0
        hasty = asyncio.ensure_future(served.by_wire(*PLAIN[:3], timeout=0.1))
        patient = asyncio.ensure_future(served.by_wire(*PLAIN[3:5]))
        assert await hasty == [(DEADLINE_EXCEEDED, "Deadline Exceeded")] * 3
        gone = asyncio.ensure_future(served.ask(PLAIN[5], timeout=10))
        await asyncio.sleep(0.05)
        gone.cancel()
        assert [code for code, _ in await patient] == [UNAVAILABLE] * 2
        assert served.taken == 6
        own_valkey.resume()
        async with asyncio.timeout(10):
            while not isinstance((await served.by_wire(PLAIN[0]))[0], bytes):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        wanted = [await served.generally(message) for message in PLAIN]
        assert await served.by_wire(*PLAIN) == wanted
        await eventually(lambda: not served.grpc.calls.live)
        ended = {code.name: count for code, count in served.grpc.calls.ended.items()}
        # A client that gives up says so, perhaps before we see that it is late.
        assert ended.get("DEADLINE_EXCEEDED", 0) + ended["CANCELLED"] == 4


async def test_a_row_that_cannot_be_read_fails_its_call_alone(valkey: LiveValkey) -> None:
    async with world(valkey) as (served, rig):
        await served.by_wire(PLAIN[0])
        keys = await rig.store.execute("KEYS", b"*last_shift*")
        bad = next(key for key in keys if b"1}" in key)
        await rig.store.execute("SET", bad, b"not a pile")
        messages = [request("plain", ("Ulm", driver)) for driver in range(1, 5)]
        wanted = [await served.generally(message) for message in messages]
        assert [isinstance(each, bytes) for each in wanted] == [False, True, True, True]
        assert await served.by_wire(*messages) == wanted


async def test_who_may_not_is_told_so_as_by_the_handler(valkey: LiveValkey) -> None:
    principal = Principal("shop", "acme", (Rule(frozenset({Scope.FEATURES}), ("counts",)),))
    access = AccessFile({STORED.key_id: (STORED, principal)}, None, [])
    said = []
    async with world(valkey):
        for doors in (True, False):
            served = World(valkey.url, access=access, doors=doors)
            await served.start()
            said_here: list[Any] = []
            for key in (KEY, KEY, "hr_no", None):
                headers = [] if key is None else [("x-api-key", key)]
                served.taken = 0
                said_here += await served.by_wire(*PLAIN, *ODD, metadata=headers)
                line = "" if key is None else f"x-api-key: {key}\r\n"
                for body in [*BODIES, *ODD_BODIES]:
                    said_here += await served.by_rest(body, headers=line)
            assert served.gate is not None
            said.append((said_here, dict(served.gate.refused), dict(served.gate.calls)))
            await served.stop()
    assert said[0] == said[1]
    heard = said[0][0]
    asked = map(pb.GetFeaturesRequest.FromString, PLAIN)
    may = [each.service == "counts" and not each.HasField("event_time") for each in asked]
    assert [isinstance(each, bytes) for each in heard[: len(PLAIN)]] == may
