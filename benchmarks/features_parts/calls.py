"""Calls for features, in the form of each server: what is sent, and how an answer is read."""

from __future__ import annotations

import base64
import json
import struct
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks import harness
from benchmarks.common import frames
from benchmarks.common.servers import CALL_TIMEOUT_S, HOST, Server
from benchmarks.common.tools import InvalidRun
from benchmarks.features_parts import facts, feast_servers
from features import Column
from server.pb import headrace_pb2 as pb
from server.protocol.columns import messages_of_table

OUR_GRPC_PATH = "/headrace.v1.Features/GetFeatures"
OUR_REST_PATH = "/v1/features"
FEAST_REST_PATH = "/get-online-features"
JSON_HEADERS = {"Content-Type": "application/json"}
# What the load's client compares: more of an answer's end is not looked at.
COMPARED_BYTES_MAX = 24_000
_ANSWER_BYTES_MAX = 16_777_216


@dataclass(frozen=True)
class Shape:
    """So many features of so many entities a call, in so many different calls."""

    width: int
    rows: int
    bodies: int

    @property
    def title(self) -> str:
        """How the figures name it."""
        return f"{self.rows} × {self.width}"

    @property
    def calls(self) -> list[list[int]]:
        """The entities of each call."""
        return facts.calls_of(self.bodies, self.rows)


class Form(ABC):
    """The calls of one shape to one server."""

    def __init__(self, shape: Shape, bodies: Sequence[bytes]) -> None:
        self.shape = shape
        self.bodies = bodies

    @abstractmethod
    def ask(self, server: Server, body: bytes) -> bytes:
        """Make a call; return its answer. Raises OSError or grpc.RpcError."""

    @abstractmethod
    def values(self, reply: bytes) -> Any:
        """Return an answer's values, by entity. Raises ValueError or LookupError."""

    def replies(self, server: Server) -> list[bytes]:
        """Make every call once; return the answers. Raises InvalidRun unless all are right."""
        found = []
        for entities, body in zip(self.shape.calls, self.bodies, strict=True):
            try:
                found.append(self.ask(server, body))
                problem = facts.wrong(self.values(found[-1]), entities, self.shape.width)
            except (OSError, grpc.RpcError, ValueError, LookupError) as error:
                raise InvalidRun(
                    f"{server.name} fails a call of {self.shape.title}: {error}"
                ) from error
            if problem:
                raise InvalidRun(f"{server.name} answers {self.shape.title} wrongly: {problem}")
        return found


class GrpcForm(Form):
    """Calls over gRPC."""

    path = OUR_GRPC_PATH

    def ask(self, server: Server, body: bytes) -> bytes:
        """Make a call."""
        options = [("grpc.max_receive_message_length", _ANSWER_BYTES_MAX)]
        with grpc.insecure_channel(f"{HOST}:{server.ports.grpc}", options) as channel:
            call = channel.unary_unary(self.path, None, None)
            reply: bytes = call(body, timeout=CALL_TIMEOUT_S, wait_for_ready=True)
        return reply

    def script(self, folder: Path, calls: int) -> tuple[list[Path], int]:
        """Write the calls of a connection; return the file, and the bytes of the longest body."""
        bodies = [struct.pack(">BI", 0, len(body)) + body for body in self.bodies]
        name = f"{type(self).__name__}-{self.shape.rows}-{self.shape.width}.script"
        blocks = frames.constant_blocks(calls, path=self.path)
        frames.write_script(folder / name, blocks, bodies)
        return [folder / name], max(map(len, bodies))


class OurGrpc(GrpcForm):
    """Ours over gRPC: columns of packed doubles; packed, all values as one string of bytes."""

    def __init__(self, shape: Shape, *, packed: bool) -> None:
        self._packed = packed
        bodies = [message_of(shape.width, entities, packed=packed) for entities in shape.calls]
        super().__init__(shape, bodies)

    def values(self, reply: bytes) -> Any:
        """Return the values of an answer in which every feature is present."""
        message = pb.GetFeaturesReply.FromString(reply)
        if self._packed:
            if any(message.status):
                raise ValueError("some features are not present")
            return np.frombuffer(message.packed, "<f8").reshape(self.shape.rows, self.shape.width)
        return answered_values(reply, self.shape)


def message_of(width: int, entities: Sequence[int], *, packed: bool) -> bytes:
    """Return a GetFeaturesRequest for these entities."""
    inputs = messages_of_table({facts.key_of(width): Column(np.array(entities, np.int64))})
    request = pb.GetFeaturesRequest(service=facts.service_of(width), inputs=inputs, packed=packed)
    return bytes(request.SerializeToString())


def answered_values(reply: bytes, shape: Shape) -> Any:
    """Return the values of a reply with columns, an entity a row. Raises ValueError."""
    message = pb.GetFeaturesReply.FromString(reply)
    names = [column.name.partition(":")[2] for column in message.features]
    if names != facts.names_of(shape.width) or any(message.status):
        raise ValueError("other features, or some that are not present")
    return np.array([column.doubles.v for column in message.features]).T


class FeastGrpc(GrpcForm):
    """Feast over gRPC; its own process writes and reads the messages."""

    path = feast_servers.GRPC_PATH

    def __init__(self, shape: Shape, feast: harness.Side) -> None:
        bodies = feast.ask("bodies", shape.width, shape.calls)["grpc"]
        super().__init__(shape, [base64.b64decode(body) for body in bodies])
        self._feast = feast

    def values(self, reply: bytes) -> Any:
        """Return the values."""
        return self._feast.ask("values", self.shape.width, base64.b64encode(reply).decode())[
            "values"
        ]


class RestForm(Form):
    """JSON over HTTP."""

    path = OUR_REST_PATH

    def ask(self, server: Server, body: bytes) -> bytes:
        """Make a call."""
        url = f"http://{HOST}:{server.ports.http}{self.path}"
        request = urllib.request.Request(url, body, JSON_HEADERS)
        with urllib.request.urlopen(request, timeout=CALL_TIMEOUT_S) as reply:
            content: bytes = reply.read()
        return content


class OurRest(RestForm):
    """Ours as JSON."""

    def __init__(self, shape: Shape) -> None:
        key, service = facts.key_of(shape.width), facts.service_of(shape.width)
        documents = [{"service": service, "inputs": {key: each}} for each in shape.calls]
        super().__init__(shape, [json.dumps(document).encode() for document in documents])

    def values(self, reply: bytes) -> Any:
        """Return the values of an answer in which every feature is present."""
        document = json.loads(reply)
        view = facts.view_of(self.shape.width)
        names = [f"{view}:{name}" for name in facts.names_of(self.shape.width)]
        if {word for each in document["status"].values() for word in each} != {"present"}:
            raise ValueError("features that are not present")
        return np.array([document["features"][name] for name in names]).T


class FeastRest(RestForm):
    """Feast as JSON."""

    path = FEAST_REST_PATH

    def __init__(self, shape: Shape, feast: harness.Side) -> None:
        bodies = feast.ask("bodies", shape.width, shape.calls)["http"]
        super().__init__(shape, [body.encode() for body in bodies])

    def values(self, reply: bytes) -> Any:
        """Return the values."""
        document = json.loads(reply)
        names = document["metadata"]["feature_names"]
        columns = {
            name: result["values"] for name, result in zip(names, document["results"], strict=True)
        }
        return np.array([columns[name] for name in facts.names_of(self.shape.width)]).T


def endings(replies: Sequence[bytes]) -> Any:
    """Return the ends of answers as the load's client compares them: float32 by bit pattern."""
    length = min(*map(len, replies), COMPARED_BYTES_MAX) // 4 * 4
    return np.array([np.frombuffer(reply[-length:], np.float32) for reply in replies])
