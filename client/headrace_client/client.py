"""The client that waits: one channel, for any number of threads."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from headrace_client import calls
from headrace_client.connection import OPTIONS, Connection, named_as

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")


def _waiting(
    build: Callable[Parameters, calls.Call[Answer]],
) -> Callable[Concatenate[Client, Parameters], Answer]:
    def method(client: Client, /, *args: Parameters.args, **named: Parameters.kwargs) -> Answer:
        return client.send(build(*args, **named))

    named_as(build, method)
    return method


class Client(Connection):
    """A client of a Headrace server; close it, or use it in a `with` block.

    Its calls are those of `headrace_client.calls`; all raise ClientError's kinds. It connects with
    its first call. Threads may share it; processes that are forked make their own.
    """

    def _open(self, target: str, credentials: grpc.ChannelCredentials | None) -> Any:
        if credentials is None:
            return grpc.insecure_channel(target, OPTIONS)
        return grpc.secure_channel(target, credentials, OPTIONS)

    predict = _waiting(calls.predict)
    explain = _waiting(calls.explain)
    feedback = _waiting(calls.feedback)
    feedback_batch = _waiting(calls.feedback_batch)
    get_features = _waiting(calls.get_features)
    infer = _waiting(calls.infer)

    def send(self, call: calls.Call[Answer]) -> Answer:
        """Send a call until it is answered, its time is over, or trying again is no use."""
        method = self._channel.unary_unary(call.path)
        course = self._begin(call.timeout_s, time.monotonic())
        while True:
            try:
                answer = method(
                    call.request,
                    timeout=course.left_s(time.monotonic()),
                    metadata=self._metadata,
                    wait_for_ready=self._wait_for_ready,
                )
            except grpc.RpcError as failure:
                time.sleep(course.wait_s(failure, time.monotonic(), random.random()))
            else:
                return call.read(answer)

    def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
