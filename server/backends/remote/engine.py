"""Sends each request to a remote server, as long as that answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from headrace.errors import ResourceExhaustedError, UnavailableError
from server.backends.remote.breaker import Breaker, Outcome
from server.backends.remote.messages import error_of
from server.backends.remote.settings import Settings
from server.backends.remote.upstream import CallFailedError, Upstream
from server.execution.batcher import Batcher
from server.execution.callers import Callers
from server.execution.engine import Array, Asked, Outputs
from server.execution.lots import Timing, deadline_passed
from server.execution.statistics import Statistics
from server.execution.threads import RunThreads
from server.models.loaded import TensorSignature
from server.wire.grpc.status import StatusCode

Made = TypeVar("Made")
# Tensors of more are written and read in a thread, not in the loop.
_LARGE_BYTES = 1 << 20
_FIRST_WAIT_NS = 20_000_000
_OURS = "triton_"  # parameters that only a server may say begin so


class RemoteEngine:
    """Answers by a remote server."""

    def __init__(
        self,
        settings: Settings,
        upstream: Upstream,
        inputs: Sequence[TensorSignature],
        outputs: Sequence[TensorSignature],
        statistics: Statistics,
        threads: RunThreads,
        random: Callable[[], float],
    ) -> None:
        """`random` gives numbers in [0, 1)."""
        self.input_names = [spec.name for spec in inputs]
        self.output_names = [spec.name for spec in outputs]
        self._settings = settings
        self._upstream = upstream
        self._inputs = inputs
        self._outputs = outputs
        self._statistics = statistics
        self._threads = threads
        self._random = random
        self._breaker = Breaker(settings.failures_max, settings.open_ns)
        self._callers = Callers()
        self._ending: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether the remote server would be asked now."""
        return self._breaker.opens_in_ns(time.monotonic_ns()) == 0

    @property
    def queue(self) -> Batcher | None:
        """None: batches are the remote server's to make."""
        return None

    @property
    def waiting(self) -> int:
        """Requests wait at the remote server only."""
        return 0

    async def answer(self, feeds: list[Array], rows: int, asked: Asked) -> Outputs:
        """Return the outputs of one request.

        Raises UnavailableError while the remote server cannot be reached, ResourceExhaustedError
        when too many requests are there, DeadlineExceededError, and what the remote server says.
        """
        if len(self._callers) >= self._settings.in_flight_max:
            raise ResourceExhaustedError(
                "too many requests wait for the remote server",
                expected=f"at most {self._settings.in_flight_max}",
                mend="try again, or raise IN_FLIGHT_MAX",
            )
        self._callers.come()
        try:
            return await self._answer(feeds, rows, asked)
        finally:
            self._callers.leave()

    def retire(self) -> None:
        """Close the connections when everybody is answered."""
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end())

    async def closed(self) -> None:
        """Retire, and return when that is done."""
        self.retire()
        if self._ending is not None:
            await asyncio.shield(self._ending)

    async def _end(self) -> None:
        await self._callers.gone()
        await self._upstream.close()

    async def _answer(self, feeds: list[Array], rows: int, asked: Asked) -> Outputs:
        start_ns = time.monotonic_ns()
        given = [
            (spec, array)
            for spec, array in zip(self._inputs, feeds, strict=True)
            if array is not None
        ]
        size = sum(array.nbytes for _, array in given)
        request = await self._made(size, lambda: self._request(given, asked))
        sent_ns = time.monotonic_ns()
        reply = await self._asked(request, asked)
        came_ns = time.monotonic_ns()
        arrays: list[Any] = await self._made(
            len(reply), lambda: self._upstream.outputs(reply, self._outputs, asked.wanted)
        )
        timing = Timing(0, sent_ns - start_ns, came_ns - sent_ns, time.monotonic_ns() - came_ns)
        self._statistics.executed(rows or 1, timing.input_ns, timing.infer_ns, timing.output_ns)
        return Outputs(arrays, timing)

    def _request(self, given: list[tuple[TensorSignature, Array]], asked: Asked) -> bytes:
        parameters = {
            name: value for name, value in asked.parameters.items() if not name.startswith(_OURS)
        }
        if asked.priority:
            parameters["priority"] = asked.priority
        return self._upstream.request(asked.request_id, given, asked.wanted, parameters)

    async def _made(self, size: int, make: Callable[[], Made]) -> Made:
        if size <= _LARGE_BYTES:
            return make()
        return await asyncio.get_running_loop().run_in_executor(self._threads, make)

    async def _asked(self, request: bytes, asked: Asked) -> bytes:
        """Return the reply. What did not arrive is sent again, while there is time.

        Not of a sequence: a row that arrived after all would be in its state twice.
        """
        until_ns = time.monotonic_ns() + self._settings.timeout_ns
        own_limit = asked.deadline_ns is None or until_ns <= asked.deadline_ns
        if asked.deadline_ns is not None:
            until_ns = min(until_ns, asked.deadline_ns)
        retries = 0 if asked.parameters.get("sequence_id") else self._settings.retries_max
        wait_ns = _FIRST_WAIT_NS
        while True:
            try:
                return await self._attempt(request, until_ns, own_limit=own_limit)
            except CallFailedError as error:
                pause_ns = int(wait_ns * (0.5 + self._random()))
                late = time.monotonic_ns() + pause_ns >= until_ns
                if error.number != StatusCode.UNAVAILABLE or not retries or late:
                    raise error_of(error.number, error.words) from error
            retries -= 1
            wait_ns *= 2
            await asyncio.sleep(pause_ns / 1e9)

    async def _attempt(self, request: bytes, until_ns: int, *, own_limit: bool) -> bytes:
        """Ask once. That a caller had little time says nothing about the remote server."""
        now_ns = time.monotonic_ns()
        if now_ns >= until_ns:
            raise deadline_passed()
        admission = self._breaker.admit(now_ns)
        if admission is None:
            raise self._refused(now_ns)
        outcome = Outcome.GIVEN_UP
        try:
            reply = await self._upstream.infer(request, until_ns - now_ns)
            outcome = Outcome.ANSWERED
        except CallFailedError as error:
            outcome = _outcome(error.number, own_limit=own_limit)
            raise
        finally:
            self._breaker.end(admission, outcome, time.monotonic_ns())
        return reply

    def _refused(self, now_ns: int) -> UnavailableError:
        error = UnavailableError("the remote server failed several times and is left alone")
        error.retry_after_s = self._breaker.opens_in_ns(now_ns) / 1e9
        return error


def _outcome(number: int, *, own_limit: bool) -> Outcome:
    if number == StatusCode.UNAVAILABLE or (number == StatusCode.DEADLINE_EXCEEDED and own_limit):
        return Outcome.FAILED
    return Outcome.GIVEN_UP if number == StatusCode.DEADLINE_EXCEEDED else Outcome.ANSWERED
