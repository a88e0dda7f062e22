"""What both clients share of a connection: its options, its metadata, the course of one call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Final

import grpc

from headrace_client.errors import InvalidArgumentError, error_of
from headrace_client.retries import RetryBudget, backoff_s, retry_after_s

TIMEOUT_S: Final = 5.0
# The server calls pings that are less than 300 s apart a strike; ours also stay away while no call
# is under way.
KEEPALIVE_MS: Final = 330_000
OPTIONS: Final[list[tuple[str, Any]]] = [
    ("grpc.primary_user_agent", "headrace-client"),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # Retries are ours: gRPC's own know no budget that is shared and no retry-after.
    ("grpc.enable_retries", 0),
    # A server that restarts is found again soon, not after gRPC's first second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.max_receive_message_length", 64 << 20),
]


class Connection:
    """Where to, as whom, how long: what a client is opened with.

    `target` is `host:port`. `api_key` goes with each call: use it with `tls`, or who listens has
    it. `tls` is True (the well-known authorities) or credentials of
    `grpc.ssl_channel_credentials`, for authorities or a certificate of your own. `timeout_s` is the
    time of a call that names none. With `wait_for_ready` a call waits within it for a server that
    is not there yet, instead of failing at once.
    """

    def __init__(
        self,
        target: str,
        *,
        api_key: str | None = None,
        tls: bool | grpc.ChannelCredentials = False,
        timeout_s: float = TIMEOUT_S,
        wait_for_ready: bool = False,
    ) -> None:
        _check_timeout(timeout_s)
        self._timeout_s = timeout_s
        self._wait_for_ready = wait_for_ready
        self._metadata = (("x-api-key", api_key),) if api_key is not None else ()
        self._budget = RetryBudget()
        credentials = grpc.ssl_channel_credentials() if tls is True else tls or None
        self._channel = self._open(target, credentials)

    def _open(self, target: str, credentials: grpc.ChannelCredentials | None) -> Any:
        raise NotImplementedError

    def _begin(self, timeout_s: float | None, now_s: float) -> Course:
        if timeout_s is not None:
            _check_timeout(timeout_s)
        self._budget.earn()
        return Course(now_s + (self._timeout_s if timeout_s is None else timeout_s), self._budget)


class Course:
    """One call from its first attempt to its end; its times are those that it is told."""

    def __init__(self, deadline_s: float, budget: RetryBudget) -> None:
        self._deadline_s = deadline_s
        self._budget = budget
        self._attempts = 0

    def left_s(self, now_s: float) -> float:
        """Return the time that the next attempt has; it counts as sent."""
        self._attempts += 1
        return max(0.0, self._deadline_s - now_s)

    def wait_s(self, failure: grpc.RpcError, now_s: float, random: float) -> float:
        """Return how long to wait before the next attempt; raises the call's error at its end."""
        code, text, hint_s = _read(failure)
        wait_s = backoff_s(code, self._attempts, self._deadline_s - now_s, hint_s, random)
        if wait_s is None or not self._budget.spend():
            error = error_of(code, text, attempts=self._attempts, retry_after_s=hint_s)
            raise error from failure
        return wait_s


def named_as(build: Callable[..., Any], method: Any) -> None:
    """Give a client's method the name, the help and the signature of the call that it sends."""
    signature = inspect.signature(build)
    owner = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__name__ = build.__name__
    method.__doc__ = build.__doc__
    method.__signature__ = signature.replace(parameters=[owner, *signature.parameters.values()])


def _check_timeout(timeout_s: float) -> None:
    if not 0 < timeout_s < float("inf"):
        raise InvalidArgumentError(f"timeout_s: expected a number of seconds, got {timeout_s}")


def _read(failure: Any) -> tuple[str, str, float | None]:
    metadata: Iterable[tuple[str, str | bytes]] = failure.trailing_metadata() or ()
    return failure.code().name.lower(), failure.details() or "", retry_after_s(dict(metadata))
