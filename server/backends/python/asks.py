"""Requests that a Python model makes to other models of this server (Triton's BLS)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from contextvars import Context

from headrace.errors import HeadraceError, InvalidArgumentError
from server.backends.contract import Host
from server.backends.python.calls import fault_of
from server.backends.python.stub import memory, messages
from server.execution.engine import Array, Asked, Parameter
from server.models.loaded import CalledModel, ServedModel
from server.protocol.oip import InferCall, Released
from server.protocol.tensors import Tensor
from server.wire import handlers as wire

# Responses of one decoupled model that its asker did not copy yet: then the next one waits.
_UNCOPIED_MAX = 16
# Of one process, under way: more wait for nothing but each other.
_ASKS_MAX = 1024

Tell = Callable[[messages.Answer, list[memory.Named] | None], int]


class Asks:
    """The requests of one process. `tell` sends it a response and returns the region it takes."""

    def __init__(self, host: Host, sent: memory.Memory, tell: Tell) -> None:
        self._host = host
        self._sent = sent
        self._tell = tell
        self._running: dict[int, asyncio.Task[None]] = {}
        self._uncopied: dict[int, asyncio.Semaphore] = {}  # by region

    def __len__(self) -> int:
        return len(self._running) + len(self._uncopied)

    def ask(self, ask: messages.Ask) -> None:
        """Start a request; its tensors are copied before this returns."""
        number = ask.request.number
        tensors = [
            Tensor(place.name, place.datatype, memory.array_of(place, self._sent).copy())
            for place in ask.request.tensors
        ]
        if len(self._running) >= _ASKS_MAX or number in self._running:
            raise ValueError("too many requests to other models")
        # Not in the name of whoever's request the loop is busy with when it hears of this one.
        task = asyncio.create_task(self._run(ask, tensors), context=Context())
        self._running[number] = task
        task.add_done_callback(lambda _: self._running.pop(number, None))

    def say_whether_ready(self, question: messages.IsReady) -> None:
        """Say whether a model would answer; an unknown one would not."""
        name, version = question.model, question.version
        released = self._host.released
        try:
            model = None if released is None else released.loaded(name, version)
            ready = (model or self._host.find(name, version)).ready
        except HeadraceError:
            ready = False
        self._tell(messages.Answer(question.number, None, True, None, {"ready": ready}), None)

    def leave(self, number: int) -> None:
        """Nobody wants more of it."""
        task = self._running.get(number)
        if task is not None:
            task.cancel()

    def given(self, region: int) -> None:
        """A response was copied."""
        uncopied = self._uncopied.pop(region, None)
        if uncopied is not None:
            uncopied.release()

    def close(self) -> None:
        """The process is gone."""
        for task in self._running.values():
            task.cancel()
        self._uncopied.clear()

    async def _run(self, ask: messages.Ask, tensors: list[Tensor]) -> None:
        number = ask.request.number
        try:
            await self._answer(ask, tensors)
        except Exception as error:  # noqa: BLE001 - it is the asker's to know
            fault = fault_of(wire.as_headrace_error(error, f"a request to model '{ask.model}'"))
            self._tell(messages.Answer(number, None, True, fault), None)

    async def _answer(self, ask: messages.Ask, tensors: list[Tensor]) -> None:
        request = ask.request
        deadline_ns = None
        if ask.timeout_us > 0:
            deadline_ns = time.monotonic_ns() + ask.timeout_us * 1000
        released = self._host.released
        if released is not None and ask.model in released.names():
            await self._answer_released(released, ask, tensors, deadline_ns)
            return
        model = self._host.find(ask.model, ask.version)
        feeds, rows = model.check(tensors, request.wanted)
        asked = Asked(request.request_id, request.wanted, request.parameters, deadline_ns)
        if not model.decoupled:
            outputs = await model.infer(feeds, rows, asked)
            self._tell_part(request, model, outputs.arrays, outputs.parameters, final=True)
            return
        if not ask.decoupled:
            raise InvalidArgumentError(
                f"model '{ask.model}' is decoupled", mend="ask by exec(decoupled=True)"
            )
        assert isinstance(model, CalledModel)
        uncopied = asyncio.Semaphore(_UNCOPIED_MAX)
        async with aclosing(model.stream(feeds, rows, asked)) as parts:
            async for part in parts:
                await uncopied.acquire()
                if part.error is not None or part.arrays is None:
                    fault = None if part.error is None else fault_of(part.error)
                    self._tell(messages.Answer(request.number, None, part.final, fault), None)
                    uncopied.release()
                    continue
                region = self._tell_part(
                    request, model, part.arrays, part.parameters, final=part.final
                )
                self._uncopied[region] = uncopied

    async def _answer_released(
        self, released: Released, ask: messages.Ask, tensors: list[Tensor], deadline_ns: int | None
    ) -> None:
        """Ask a model under a release plan as a client does: an arm is drawn, and it is logged."""
        request = ask.request
        call = InferCall(
            ask.model, ask.version, request.request_id, tensors, request.wanted, request.parameters
        )
        found = await released.infer(call, wire.Context({}, deadline_ns))
        outputs = [
            (output.name, memory.datatype_of(output.array), output.array)
            for output in found.outputs
        ]
        answer = messages.Answer(request.number, None, True, None, found.parameters)
        self._tell(answer, outputs)

    def _tell_part(
        self,
        request: messages.Request,
        model: ServedModel,
        arrays: list[Array],
        parameters: dict[str, Parameter],
        *,
        final: bool,
    ) -> int:
        outputs = [
            (name, memory.datatype_of(array), array)
            for name, array in zip(model.outputs, arrays, strict=True)
            if array is not None and (not request.wanted or name in request.wanted)
        ]
        answer = messages.Answer(request.number, None, final, None, parameters)
        return self._tell(answer, outputs)
