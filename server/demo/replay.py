"""The client that plays the past against a live server, as fast as it answers.

Minute by minute, in order: push what became known, ask all of the minute's questions behind that
push (`min_offset`), and tell outcomes in the background once they were known. As in the world,
events do not wait for answers: while a few minutes' questions are with the server, the events of
the next are on their way. That an answer sees none of them is what event times are for, and what
the comparison with history proves, row by row.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

import grpc
import numpy as np
from grpc import aio

from headrace.errors import STATUS, HeadraceError, InternalError
from headrace.times import MINUTE_US
from server.demo.replay_clock import ReplayClock, Step
from server.pb import headrace_pb2 as pb

CALL_TIMEOUT_S = 60.0
# Room for events of one instant above it: a push takes 10,000 at most.
PUSH_ROWS_MAX = 8_000
FEEDBACK_ROWS = 512
FEEDBACK_IN_FLIGHT_MAX = 4
# Minutes whose questions may be with the server at a time, and how far the events may run ahead of
# the oldest: the store answers exactly up to 15 minutes behind its newest event.
MINUTES_IN_FLIGHT_MAX = 3
LEAD_US_MAX = 10 * MINUTE_US
# Below the eye's patience, far above the cost of drawing.
_PROGRESS_NS = 150_000_000
_MESSAGE_BYTES_MAX = 256 << 20
_ERRORS = {
    STATUS[kind.code].grpc: kind for kind in HeadraceError.__subclasses__() if kind.code in STATUS
}


@dataclass(frozen=True)
class Outcomes:
    """What came true for each decision, and when it was known (microseconds)."""

    name: str
    values: np.ndarray
    known_us: np.ndarray


@dataclass(frozen=True)
class Cue:
    """Something to do before the first decision at or after `at_us`."""

    at_us: int
    action: Callable[[], Awaitable[None]]


@dataclass
class Answers:
    """What the server said, one element a decision, and how long it took."""

    prediction_ids: np.ndarray
    outputs: np.ndarray
    arms: np.ndarray
    push_ns: list[int] = field(default_factory=list)
    predict_ns: list[int] = field(default_factory=list)
    events: int = 0
    truths: int = 0
    seconds: float = 0.0

    @staticmethod
    def room(rows: int) -> Answers:
        """Return room for `rows` answers."""
        return Answers(
            np.zeros(rows, "V16"), np.full(rows, np.nan, np.float32), np.full(rows, "", object)
        )


# (decisions answered, simulated time in microseconds)
Progress = Callable[[int, int], None]


class ReplayClient:
    """The calls that a replay needs, over one gRPC channel. Use as an async context manager.

    Every call raises the HeadraceError that the server answered with.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    async def __aenter__(self) -> ReplayClient:
        options = [
            ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", _MESSAGE_BYTES_MAX),
        ]
        self._channel = aio.insecure_channel(self._address, options=options)
        self._predict = self._method("Predictions/Predict", pb.PredictRequest, pb.PredictReply)
        self._feedback = self._method("Predictions/Feedback", pb.FeedbackRequest, pb.FeedbackReply)
        self._features = self._method(
            "Features/GetFeatures", pb.GetFeaturesRequest, pb.GetFeaturesReply
        )
        self._push = self._method("Features/Push", pb.PushRequest, pb.PushReply)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close(None)

    def _method(self, name: str, request: Any, reply: Any) -> Any:
        call = self._channel.unary_unary(
            f"/headrace.v1.{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=reply.FromString,
        )

        async def method(message: Any) -> Any:
            try:
                return await call(message, timeout=CALL_TIMEOUT_S)
            except grpc.RpcError as error:
                raise _headrace_error(name, error) from None

        return method

    async def predict(self, request: pb.PredictRequest) -> pb.PredictReply:
        """Ask; the request may carry min_offset."""
        reply: pb.PredictReply = await self._predict(request)
        return reply

    async def warm(
        self, clock: ReplayClock, before_us: int, service: str, progress: Callable[[int], None]
    ) -> int:
        """Push everything known before `before_us`; return how many events that were.

        Each push waits until the one before it was taken in, so that the backlog stays bounded.
        """
        rows, offset = 0, ""
        barrier = pb.GetFeaturesRequest(
            service=service, inputs=clock.question(0).inputs, event_time=before_us
        )
        for push, count in clock.known(before_us, rows_max=PUSH_ROWS_MAX):
            reply = await self._push(push)
            if offset:
                barrier.min_offset = offset
                await self._features(barrier)
            offset = reply.offset
            rows += count
            progress(rows)
        if offset:
            barrier.min_offset = offset
            await self._features(barrier)
        return rows

    async def replay(
        self,
        clock: ReplayClock,
        outcomes: Outcomes,
        progress: Progress,
        cues: list[Cue] | None = None,
    ) -> Answers:
        """Play every decision minute of the clock; return the answers in the spine's order."""
        answers = Answers.room(len(outcomes.values))
        cues = sorted(cues or [], key=lambda cue: cue.at_us)
        offset, shown_ns, begin_ns = "", 0, perf_counter_ns()
        async with _Feedback(self._feedback, outcomes, answers) as feedback:
            async with _Asking(self._predict, answers) as asking:
                for step in clock.steps():
                    if cues and cues[0].at_us <= step.time_us:
                        await asking.until(0)
                        while cues and cues[0].at_us <= step.time_us:
                            await cues.pop(0).action()
                    await asking.until(MINUTES_IN_FLIGHT_MAX - 1, step.time_us - LEAD_US_MAX)
                    await feedback.tell(step.time_us)
                    if step.push is not None:
                        offset = await self._push_step(step, answers)
                    asking.ask(step, offset)
                    now_ns = perf_counter_ns()
                    if now_ns - shown_ns > _PROGRESS_NS:
                        shown_ns = now_ns
                        progress(step.stop, step.time_us)
            # What the last outcomes came with: the store ends as of the end of the replay.
            end_us = int(outcomes.known_us.max(initial=0))
            for push, events in clock.known(end_us + 1, rows_max=PUSH_ROWS_MAX):
                await self._push(push)
                answers.events += events
            await feedback.tell(None)
        answers.truths = feedback.accepted
        answers.seconds = (perf_counter_ns() - begin_ns) / 1e9
        return answers

    async def _push_step(self, step: Step, answers: Answers) -> str:
        start_ns = perf_counter_ns()
        reply = await self._push(step.push)
        answers.push_ns.append(perf_counter_ns() - start_ns)
        answers.events += step.events
        offset: str = reply.offset
        return offset


class _Asking:
    """A few minutes' questions with the server, the oldest first."""

    def __init__(self, call: Any, answers: Answers) -> None:
        self._call = call
        self._answers = answers
        self._asked: deque[tuple[int, asyncio.Task[None]]] = deque()

    async def __aenter__(self) -> _Asking:
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            await self.until(0)
        for _, task in self._asked:
            task.cancel()
        await asyncio.gather(*(task for _, task in self._asked), return_exceptions=True)

    async def until(self, most: int, oldest_us: int | None = None) -> None:
        """Wait until `most` minutes are left, and none of them is before `oldest_us`.

        Raises what the server said to one that it refused.
        """
        while self._asked:
            time_us, task = self._asked[0]
            if len(self._asked) <= most and (oldest_us is None or time_us >= oldest_us):
                return
            await task
            self._asked.popleft()

    def ask(self, step: Step, offset: str) -> None:
        """Ask a minute's questions behind the offset."""
        step.predict.min_offset = offset
        self._asked.append((step.time_us, asyncio.create_task(self._ask(step))))

    async def _ask(self, step: Step) -> None:
        start_ns = perf_counter_ns()
        reply = await self._call(step.predict)
        self._answers.predict_ns.append(perf_counter_ns() - start_ns)
        _keep(self._answers, step.start, step.stop, reply)


def _keep(answers: Answers, start: int, stop: int, reply: pb.PredictReply) -> None:
    rows = stop - start
    if not (len(reply.prediction_ids) == len(reply.outputs) == len(reply.arms) == rows):
        raise InternalError(
            "Predict answered another number of rows than were asked",
            expected=rows,
            got=f"{len(reply.prediction_ids)} ids, {len(reply.outputs)} outputs",
        )
    answers.prediction_ids[start:stop] = np.frombuffer(b"".join(reply.prediction_ids), "V16")
    answers.outputs[start:stop] = reply.outputs
    answers.arms[start:stop] = list(reply.arms)


class _Feedback:
    """Tells outcomes in batches, a few calls at a time, beside the predictions."""

    def __init__(self, call: Any, outcomes: Outcomes, answers: Answers) -> None:
        self._call = call
        self._outcomes = outcomes
        self._answers = answers
        self._order = np.argsort(outcomes.known_us, kind="stable")
        self._known_us = outcomes.known_us[self._order]
        self._told = 0
        self._slots = asyncio.Semaphore(FEEDBACK_IN_FLIGHT_MAX)
        self.accepted = 0

    async def __aenter__(self) -> _Feedback:
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            await self._tasks.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            # One outcome that is refused is the news, not the group around it.
            raise group.exceptions[0] from None

    async def tell(self, now_us: int | None) -> None:
        """Send full batches of what is known at `now_us`; None sends all that is left."""
        if now_us is None:
            known = len(self._order)
        else:
            known = int(np.searchsorted(self._known_us, now_us, side="right"))
        while known - self._told >= FEEDBACK_ROWS or (now_us is None and known > self._told):
            stop = min(self._told + FEEDBACK_ROWS, known)
            rows = self._order[self._told : stop]
            self._told = stop
            await self._slots.acquire()
            self._tasks.create_task(self._send(rows))

    async def _send(self, rows: np.ndarray) -> None:
        outcomes = self._outcomes
        truths = [
            pb.Truth(prediction_id=i, name=outcomes.name, value=v, event_time=t, source="replay")
            for i, v, t in zip(
                self._answers.prediction_ids[rows].tolist(),
                outcomes.values[rows].tolist(),
                outcomes.known_us[rows].tolist(),
                strict=True,
            )
        ]
        try:
            reply = await self._call(pb.FeedbackRequest(truths=truths))
            self.accepted += reply.accepted
        finally:
            self._slots.release()


def _headrace_error(method: str, error: Any) -> HeadraceError:
    code = error.code().value[0]
    kind = _ERRORS.get(code, InternalError)
    return kind(error.details() or error.code().name, where=method.rpartition("/")[2])
