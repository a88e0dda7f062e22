"""What goes over the wire, seen by a grpcio server that answers as it is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from uuid import UUID

import grpc
import pytest

from headrace_client import AsyncClient, Client, ClientError, ResourceExhaustedError
from headrace_client.connection import KEEPALIVE_MS
from server.pb import headrace_pb2 as pb
from server.wire.http2.limits import Limits

ID = UUID("0195a000-0000-7000-8000-000000000001")
OK = pb.FeedbackReply(accepted=1).SerializeToString()


class Failure(NamedTuple):
    """How the server fails a call."""

    code: grpc.StatusCode
    retry_after: str | None = None


class Seen(NamedTuple):
    """What the server got."""

    method: str
    message: bytes
    metadata: dict[str, Any]
    left_s: float | None
    at_s: float


class ToldServer(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Fails the next calls as `failures` say, one each; answers those after."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []
        self.seen: list[Seen] = []
        self._server = grpc.server(ThreadPoolExecutor(2), handlers=(self,))
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, details: Any) -> Any:
        def answer(message: bytes, context: Any) -> bytes:
            metadata = dict(context.invocation_metadata())
            left_s, at_s = context.time_remaining(), time.monotonic()
            self.seen.append(Seen(details.method, message, metadata, left_s, at_s))
            if self.failures:
                failure = self.failures.pop(0)
                if failure.retry_after is not None:
                    context.set_trailing_metadata((("retry-after", failure.retry_after),))
                context.abort(failure.code, "as told")
            return OK

        return grpc.unary_unary_rpc_method_handler(answer)

    def close(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def server() -> Iterator[ToldServer]:
    told = ToldServer()
    yield told
    told.close()


@pytest.fixture(params=["blocking", "awaiting"])
def tell(request: pytest.FixtureRequest, server: ToldServer) -> Any:
    """Give feedback by one client or the other."""

    def blocking(**settings: Any) -> Any:
        with Client(server.target, **settings) as client:
            return client.feedback(ID, "tip", 1.0)

    def awaiting(**settings: Any) -> Any:
        async def run() -> Any:
            async with AsyncClient(server.target, **settings) as client:
                return await client.feedback(ID, "tip", 1.0)

        return asyncio.run(run())

    return blocking if request.param == "blocking" else awaiting


def test_a_feedback_that_is_sent_again_is_the_same_to_the_byte(
    server: ToldServer, tell: Any
) -> None:
    server.failures = [Failure(grpc.StatusCode.UNAVAILABLE)] * 2
    assert tell() == 1
    first, *again = [seen.message for seen in server.seen]
    assert again == [first, first]
    (truth,) = pb.FeedbackRequest.FromString(first).truths
    assert (truth.prediction_id, truth.name, truth.value) == (ID.bytes, "tip", 1.0)


def test_every_attempt_has_what_is_left_of_the_one_deadline(server: ToldServer, tell: Any) -> None:
    server.failures = [Failure(grpc.StatusCode.UNAVAILABLE, "1")]
    tell(timeout_s=7.0, api_key="hr_key")
    first, second = (seen.left_s or 0 for seen in server.seen)
    # gRPC says a deadline of before again where it is within three in a hundred.
    assert 0 < second < 6 * 1.03
    assert second < first < 7 * 1.03
    assert {seen.metadata["x-api-key"] for seen in server.seen} == {"hr_key"}
    assert all(s.metadata["user-agent"].startswith("headrace-client ") for s in server.seen)
    assert {seen.method for seen in server.seen} == {"/headrace.v1.Predictions/Feedback"}


RETRIED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}


@pytest.mark.parametrize(
    "code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
)
def test_two_codes_are_tried_again_and_each_keeps_its_name(
    server: ToldServer, tell: Any, code: grpc.StatusCode
) -> None:
    server.failures = [Failure(code)] * 5
    with pytest.raises(ClientError, match="as told") as failed:
        tell()
    assert failed.value.attempts == len(server.seen) == (5 if code in RETRIED else 1)
    own = type(failed.value) is not ClientError
    assert failed.value.code == (code.name.lower() if own else "unknown")


def test_nobody_comes_back_before_the_server_said(server: ToldServer, tell: Any) -> None:
    server.failures = [Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "1")]
    assert tell(timeout_s=5) == 1
    first, second = (seen.at_s for seen in server.seen)
    assert second - first >= 1
    server.failures = [Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "60")]
    with pytest.raises(ResourceExhaustedError) as failed:
        tell(timeout_s=5)
    assert (failed.value.retry_after_s, failed.value.attempts) == (60.0, 1)


def test_our_servers_allow_the_keepalive() -> None:
    assert Limits().ping_interval_ns < KEEPALIVE_MS * 1_000_000
