"""What the door's tests share: a repository, messages, and a wire that only keeps the books."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2 as pb

from headrace.errors import HeadraceError, NotFoundError
from server.execution.statistics import Statistics
from server.models.loaded import LoadedModel
from server.models.repository import ModelRepository
from server.protocol.infer_door import Call, InferDoor
from server.protocol.infer_template import InferTemplates
from server.protocol.oip import InferAnswer, InferCall, InferenceProtocol
from server.protocol.oip_grpc import InferenceCalls
from server.wire.grpc.framing import frame
from server.wire.handlers import Context
from tests.server.onnx_models import (
    add_model,
    gather_model,
    identity_model,
    info,
    mixing_model,
    mlp_model,
    model_bytes,
    put,
)

Array = np.ndarray[Any, Any]
KINDS = {"FP32": TensorProto.FLOAT, "FP16": TensorProto.FLOAT16, "UINT8": TensorProto.UINT8,
         "INT64": TensorProto.INT64, "BOOL": TensorProto.BOOL,
         "BYTES": TensorProto.STRING}  # fmt: skip


class Released:
    """A release plan that holds the names in `planned`."""

    def __init__(self) -> None:
        self.planned: list[str] = []

    def names(self) -> list[str]:
        return self.planned

    def loaded(self, name: str, version: str) -> LoadedModel | None:
        return None

    async def infer(self, call: InferCall, context: Context) -> InferAnswer:
        raise NotFoundError("the plan's own way")


class Head:
    """What the door reads of a call's head."""

    __slots__ = ("timeout_ns", "traceparent", "tracestate")

    def __init__(self, timeout_ns: int = -1) -> None:
        self.timeout_ns = timeout_ns
        self.traceparent, self.tracestate = b"", ""


class Books:
    """A tick's other side: every call ends exactly once, as a reply, an error or dropped."""

    def __init__(self) -> None:
        self.replies: dict[int, bytes] = {}
        self.errors: dict[int, HeadraceError] = {}
        self.dropped: set[int] = set()
        self.closed: set[int] = set()
        self.sends: list[int] = []  # the sizes of `reply_all`
        self.something_ended = asyncio.Event()

    def _once(self, call: Call) -> None:
        self.something_ended.set()
        ended = (*self.replies, *self.errors, *self.dropped)
        assert call[1] not in ended

    def reply_all(self, calls: Sequence[Call], prefix: bytes, tails: Sequence[bytes]) -> None:
        assert len({len(tail) for tail in tails}) == 1
        self.sends.append(len(calls))
        for call, tail in zip(calls, tails, strict=True):
            self._once(call)
            self.replies[call[1]] = prefix + tail

    def fail(self, call: Call, error: HeadraceError) -> None:
        self._once(call)
        self.errors[call[1]] = error

    def drop(self, call: Call) -> None:
        self._once(call)
        self.dropped.add(call[1])

    def is_open(self, call: Call) -> bool:
        return call[1] not in self.closed


class World:
    """One server without a wire: its general way and its door."""

    def __init__(self, repository: ModelRepository) -> None:
        self.repository = repository
        self.released = Released()
        self.protocol = InferenceProtocol(repository, self.released, lambda: True)
        self.templates = InferTemplates(self.protocol)
        self.books = Books()
        self.door = InferDoor(self.templates, self.books)
        self._general = InferenceCalls(self.protocol).table()
        self._teaching = InferenceCalls(self.protocol, self.templates.learn).table()
        self._stream = -1

    async def general(self, message: bytes, *, teach: bool = False) -> bytes:
        table = self._teaching if teach else self._general
        handler: Any = table["/inference.GRPCInferenceService/ModelInfer"]
        reply: bytes = await handler(message, Context())
        return reply

    async def learn(self, *messages: bytes) -> None:
        for message in messages:
            await self.general(message, teach=True)
        self._forget_how_long_it_took()

    def _forget_how_long_it_took(self) -> None:
        """A first run that a busy machine held up must not move the next out of the loop."""
        for model in self.repository.models():
            for rows in (1, 2, 4, 8):
                for _ in range(60):
                    model.batcher.expect(rows, 10_000)

    def call(self, message: bytes, timeout_ns: int = -1) -> Call:
        self._stream += 2
        return None, self._stream, Head(timeout_ns), frame(message)

    def statistics(self, name: str) -> Statistics:
        return self.repository.get(name).statistics


def words_model() -> bytes:
    """x FLOAT [N, 2] → `text` STRING [N], constant, and `twice` FLOAT [N, 2]."""
    words = helper.make_tensor("words", TensorProto.STRING, [1], [b"word"])
    nodes = [
        helper.make_node("Add", ["x", "x"], ["twice"]),
        helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
        helper.make_node("Constant", [], ["word"], value=words),
        helper.make_node("Expand", ["word", "rows"], ["text"]),
    ]
    return model_bytes(
        helper.make_graph(
            nodes,
            "words",
            [info("x", TensorProto.FLOAT, ["N", 2])],
            [info("text", TensorProto.STRING, ["N"]), info("twice", TensorProto.FLOAT, ["N", 2])],
        )
    )


def nonzero_model() -> bytes:
    """Where x FLOAT [4] is not zero: INT64 [1, as many as there are]."""
    return model_bytes(
        helper.make_graph(
            [helper.make_node("NonZero", ["x"], ["at"])],
            "nonzero",
            [info("x", TensorProto.FLOAT, [4])],
            [info("at", TensorProto.INT64, [1, "found"])],
        )
    )


def nothing_model() -> bytes:
    """x FLOAT [N, 2] → its columns before the first: FLOAT [N, 0]."""
    places = [helper.make_tensor(name, TensorProto.INT64, [1], [value])
              for name, value in (("from", 0), ("to", 0), ("axis", 1))]  # fmt: skip
    return model_bytes(
        helper.make_graph(
            [helper.make_node("Slice", ["x", "from", "to", "axis"], ["none"])],
            "nothing",
            [info("x", TensorProto.FLOAT, ["N", 2])],
            [info("none", TensorProto.FLOAT, ["N", 0])],
            places,
        )
    )


def load(root: Path, executor: Executor) -> ModelRepository:
    """Write and load the models; long runs go to `executor`."""
    put(root, "mlp", mlp_model(), config="max_batch_size: 8")
    put(root, "twin", mlp_model(seed=2), config="max_batch_size: 8")
    put(root, "add", add_model(), config="max_batch_size: 8")
    put(root, "fixed", add_model(2))
    put(root, "gather", gather_model(), config="max_batch_size: 8")
    put(root, "mixing", mixing_model(), config="max_batch_size: 8")
    put(root, "nothing", nothing_model(), config="max_batch_size: 8")
    put(root, "nonzero", nonzero_model())
    put(root, "words", words_model(), config="max_batch_size: 8")
    for datatype, kind in KINDS.items():
        put(root, f"same_{datatype}", identity_model(kind), config="max_batch_size: 8")
    repository = ModelRepository(root, executor)
    asyncio.run(repository.load_all())
    assert all(entry.state == "READY" for entry in repository.index()), repository.index()
    return repository


def request(
    model: str, inputs: dict[str, tuple[str, Array]], *, wanted: Sequence[str] = (), **fields: Any
) -> bytes:
    """Return a ModelInferRequest with raw contents, as tritonclient writes it."""
    message = pb.ModelInferRequest(model_name=model, **fields)
    for name, (datatype, array) in inputs.items():
        message.inputs.add(name=name, datatype=datatype, shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    for name in wanted:
        message.outputs.add(name=name)
    encoded: bytes = message.SerializeToString()
    return encoded


def rows_of(count: int, *, model: str = "mlp", seed: int = 0, **fields: Any) -> bytes:
    """Return a request of `count` random rows for an `mlp`."""
    rows = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    return request(model, {"features": ("FP32", rows)}, **fields)
