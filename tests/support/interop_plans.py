"""Seeded random calls, and the handlers that do as a call's plan says."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import grpc

from server.wire.handlers import Context, Handlers, Kind, Method
from tests.support.interop_service import EchoedStatusError

PLAN_KEY = "x-plan-bin"
CODES = tuple(range(17))
# What a message may hold that a header may not, and what percent-encoding trips on.
TEXTS = (
    "",
    "plain",
    "100% %41 %zz %",
    "line\r\nline\ttab",
    " spaces at both ends ",
    "ünïcödé ☺ 😈",
    "\x00\x7f\x80",
    '"quoted", comma; semicolon: colon',
    "long " * 300,
    "é☺" * 900,  # above the cap
)
_SIZES = (0, 1, 4, 5, 100, 1023, 16383, 16384, 65535, 65536, 100_000)
_KEYS = ("x-a", "x-b", "x.dot_under-dash", "x-0", "x-a-bin", "x-b-bin")
_DEADLINE_S = 0.2


@dataclass(frozen=True)
class Plan:
    """One call: what the client sends and what the handler does."""

    number: int
    kind: Kind
    path: str
    metadata: list[tuple[str, str | bytes]]
    requests: list[bytes]
    timeout_s: float | None
    compression: grpc.Compression | None
    sleeps: bool  # the handler waits until the deadline has passed
    # The handler fails while the client has sent nothing and not half-closed. (A client that is
    # still sending may report its own failed write, "Internal error from Core", for the status.)
    fails_early: bool


@dataclass
class Seen:
    """What a handler was given."""

    fields: list[tuple[str, str | bytes]]
    has_deadline: bool
    requests: list[str] = field(default_factory=list)  # digests


def by_key(metadata: Iterable[tuple[str, str | bytes]]) -> list[tuple[str, str | bytes]]:
    """Return metadata sorted by key: gRPC promises the order of one key's values, no more."""
    return sorted(((key, value) for key, value in metadata), key=itemgetter(0))


def _value(key: str, rng: random.Random) -> str | bytes:
    size = rng.choice((0, 1, 2, 3, 20, 200))
    if key.endswith("-bin"):
        return rng.randbytes(size)
    text = "".join(chr(rng.randint(0x20, 0x7E)) for _ in range(size))
    return text.strip(" ")  # spaces at the ends of a header's value may be dropped on the way


def _metadata(rng: random.Random) -> list[tuple[str, str | bytes]]:
    keys = rng.choices(_KEYS, k=rng.randint(0, 6))
    return [(key, _value(key, rng)) for key in keys]


def _bodies(rng: random.Random, count: int) -> list[bytes]:
    sizes = [rng.choice(_SIZES) for _ in range(count)]
    return [rng.choice((bytes, rng.randbytes))(size) for size in sizes]


def _packed(metadata: list[tuple[str, str | bytes]]) -> list[list[str]]:
    return [[key, value.hex() if isinstance(value, bytes) else value] for key, value in metadata]


def _unpacked(packed: list[list[str]]) -> list[tuple[str, str | bytes]]:
    return [(key, bytes.fromhex(value) if key.endswith("-bin") else value) for key, value in packed]


def plan(seed: int, number: int) -> Plan:
    """Return call `number` of `seed`."""
    rng = random.Random(f"{seed} {number}")
    kind = rng.choice(list(Kind))
    client_streams, server_streams = kind.value
    sleeps = rng.random() < 0.04
    fault = None if sleeps else rng.choice((None, None, None, "status", "status", "bug"))
    replies = rng.randint(0, 4) if server_streams else 1
    instructions = {
        "number": number,
        "initial": _packed(_metadata(rng)),
        "trailing": _packed(_metadata(rng)),
        "replies": [[rng.choice(_SIZES), rng.choice((None, True, False))] for _ in range(replies)],
        "reads_first": rng.random() < 0.5,
        "sleeps": sleeps,
        "fault": fault,
        "code": rng.choice(CODES[1:]),
        "text": rng.randrange(len(TEXTS)),
    }
    is_known = rng.random() > 0.03
    path = f"/differential/{kind.name}" if is_known else "/differential/None"
    reads_all = instructions["reads_first"] or (fault is None and not sleeps)
    fails_early = client_streams and not (is_known and reads_all)
    return Plan(
        number,
        kind,
        path,
        [*_metadata(rng), (PLAN_KEY, json.dumps(instructions).encode())],
        [] if fails_early else _bodies(rng, rng.randint(0, 4) if client_streams else 1),
        _DEADLINE_S if sleeps else rng.choice((None, None, 60.0)),
        rng.choice((None, None, grpc.Compression.Gzip, grpc.Compression.Deflate)),
        sleeps,
        fails_early,
    )


def _digest(message: bytes) -> str:
    return f"{len(message)} {hashlib.sha256(message).hexdigest()[:16]}"


class PlannedService:
    """Does as a call's plan says, and keeps what it was given by the plan's number."""

    def __init__(self) -> None:
        self.seen: dict[int, Seen] = {}

    @property
    def handlers(self) -> Handlers:
        calls = {
            Kind.UNARY: self._unary,
            Kind.SERVER_STREAM: self._server_stream,
            Kind.CLIENT_STREAM: self._client_stream,
            Kind.BIDI_STREAM: self._bidi_stream,
        }
        return {f"/differential/{kind.name}": Method(kind, call) for kind, call in calls.items()}

    def _begin(self, context: Context) -> tuple[Any, Seen]:
        fields = [pair for pair in context.fields if pair[0].startswith("x")]
        [value] = [value for key, value in context.fields if key == PLAN_KEY]
        instructions = json.loads(value)
        context.initial_metadata = _unpacked(instructions["initial"])
        context.trailing_metadata = _unpacked(instructions["trailing"])
        seen = Seen(by_key(fields), context.deadline_ns is not None)
        self.seen[instructions["number"]] = seen
        return instructions, seen

    async def _fail(self, instructions: Any) -> None:
        if instructions["sleeps"]:
            await asyncio.Event().wait()
        if instructions["fault"] == "status":
            raise EchoedStatusError(instructions["code"], TEXTS[instructions["text"]])
        if instructions["fault"] == "bug":
            raise ValueError("a secret")

    def _reply(self, context: Context, instructions: Any, seen: Seen, index: int) -> bytes:
        size, context.compress = instructions["replies"][index]
        text = f"{index} {seen.requests} ".encode()
        return (text * (size // len(text) + 1))[:size]

    async def _unary(self, message: bytes, context: Context) -> bytes:
        instructions, seen = self._begin(context)
        seen.requests.append(_digest(message))
        await self._fail(instructions)
        return self._reply(context, instructions, seen, 0)

    async def _client_stream(self, messages: AsyncIterator[bytes], context: Context) -> bytes:
        instructions, seen = self._begin(context)
        if not instructions["reads_first"]:
            await self._fail(instructions)
        async for message in messages:
            seen.requests.append(_digest(message))
        await self._fail(instructions)
        return self._reply(context, instructions, seen, 0)

    async def _server_stream(self, message: bytes, context: Context) -> AsyncIterator[bytes]:
        instructions, seen = self._begin(context)
        seen.requests.append(_digest(message))
        for index in range(len(instructions["replies"])):
            yield self._reply(context, instructions, seen, index)
        await self._fail(instructions)

    async def _bidi_stream(
        self, messages: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        instructions, seen = self._begin(context)
        left = list(range(len(instructions["replies"])))
        if instructions["fault"] is not None and not instructions["reads_first"]:
            await self._fail(instructions)
        async for message in messages:
            seen.requests.append(_digest(message))
            if left and not instructions["reads_first"]:
                yield self._reply(context, instructions, seen, left.pop(0))
        for index in left:
            yield self._reply(context, instructions, seen, index)
        await self._fail(instructions)
