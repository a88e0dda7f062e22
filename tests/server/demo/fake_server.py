"""A server of `headrace.v1` that remembers what it was told, over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from headrace.errors import HeadraceError
from server.pb import headrace_pb2 as pb
from server.wire.grpc.server import GrpcServer
from server.wire.handlers import Context


class FakeServer:
    """Answers every question with `created / 1000` of the newest event that it may see.

    It may see what was pushed up to its offset and created by its time, as the real one does.
    """

    def __init__(self) -> None:
        self.created: list[int] = []
        self.pushed: list[int] = []
        self.lead_most = 0
        self.asked_now = 0
        self.asked_most = 0
        self.waited: list[str] = []
        self.questions: list[pb.PredictRequest] = []
        self.truths: list[pb.Truth] = []
        self.feedback_now = 0
        self.feedback_most = 0
        self.refuse: dict[str, HeadraceError] = {}
        self.hold = asyncio.Event()
        self.hold.set()
        self._ids = 0

    async def push(self, message: bytes, _: Context) -> bytes:
        self._check("push")
        request = pb.PushRequest.FromString(message)
        for batch in request.batches:
            self.created += list(batch.created_times or batch.event_times)
        self.pushed.append(len(self.created))
        return pb.PushReply(offset=f"{len(self.pushed)}-0").SerializeToString()

    async def features(self, message: bytes, _: Context) -> bytes:
        request = pb.GetFeaturesRequest.FromString(message)
        self.waited.append(request.min_offset)
        assert request.min_offset != ""
        return pb.GetFeaturesReply(service=request.service).SerializeToString()

    async def predict(self, message: bytes, _: Context) -> bytes:
        self._check("predict")
        request = pb.PredictRequest.FromString(message)
        self.questions.append(request)
        pushes = int(request.min_offset.removesuffix("-0") or 0)
        behind = self.created[: self.pushed[pushes - 1]] if pushes else []
        newest = max((c for c in behind if c <= request.event_time), default=0)
        self.lead_most = max(self.lead_most, max(self.created, default=0) - request.event_time)
        self.asked_now += 1
        self.asked_most = max(self.asked_most, self.asked_now)
        await asyncio.sleep(0)  # others that were asked come in meanwhile
        self.asked_now -= 1
        rows = len(request.request_ids)
        first, self._ids = self._ids, self._ids + rows
        return pb.PredictReply(
            model=request.model,
            prediction_ids=[i.to_bytes(16, "big") for i in range(first, first + rows)],
            versions=["sha256:aa"] * rows,
            arms=["a" if i % 2 else "b" for i in range(first, first + rows)],
            outputs=[newest / 1000] * rows,
            output_width=1,
            plan=3,
        ).SerializeToString()

    async def feedback(self, message: bytes, _: Context) -> bytes:
        self._check("feedback")
        request = pb.FeedbackRequest.FromString(message)
        self.feedback_now += 1
        self.feedback_most = max(self.feedback_most, self.feedback_now)
        await self.hold.wait()
        self.feedback_now -= 1
        self.truths += list(request.truths)
        return pb.FeedbackReply(accepted=len(request.truths)).SerializeToString()

    def _check(self, name: str) -> None:
        if name in self.refuse:
            raise self.refuse[name]

    def handlers(self) -> dict[str, Any]:
        return {
            "/headrace.v1.Predictions/Predict": self.predict,
            "/headrace.v1.Predictions/Feedback": self.feedback,
            "/headrace.v1.Features/Push": self.push,
            "/headrace.v1.Features/GetFeatures": self.features,
        }


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[FakeServer, str]]:
    """Run the fake on a free port; yields it and its address."""
    fake = FakeServer()
    server = GrpcServer(fake.handlers())
    port = await server.start("127.0.0.1", 0)
    try:
        yield fake, f"127.0.0.1:{port}"
    finally:
        await server.drain(0.2)
