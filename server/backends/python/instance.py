"""One instance of a Python model: what it was asked, and what it says."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from headrace.errors import (
    FailedPreconditionError,
    HeadraceError,
    InternalError,
    UnavailableError,
)
from server.backends.python.asks import Asks
from server.backends.python.calls import Batch, Call, error_of
from server.backends.python.process import ModelProcess
from server.backends.python.regions import Regions
from server.backends.python.stub import memory, messages
from server.execution.engine import Array, Part
from server.execution.lots import Lot, Timing
from server.models.loaded import ServedModel
from server.processes.child import how

_LOG = logging.getLogger(__name__)
_CREDIT_STEP = 16  # responses that were taken until the process hears of it
_IDLE_MEMORY_BYTES_MAX = 16 << 20


@dataclass(frozen=True, slots=True)
class Setup:
    """What all instances of a version have in common. Times are seconds."""

    name: str
    inputs: Sequence[tuple[str, str]]  # name, datatype
    outputs: Sequence[str]
    execute_max_s: float
    start_max_s: float
    finalize_max_s: float
    memory_bytes_max: int


class Owner(Protocol):
    """Who has instances."""

    def freed(self, instance: Instance) -> None:
        """It can take the next batch."""

    def ended(self, instance: Instance, reason: str) -> None:
        """Its process is gone."""

    def executed(self, rows: int, timing: Timing) -> None:
        """A batch was run."""


class Instance(asyncio.Protocol):
    """One process with its calls. `setup` and `owner` are set before it executes anything."""

    def __init__(self, name: str, find: Callable[[str, str], ServedModel]) -> None:
        self.setup: Setup | None = None
        self.owner: Owner | None = None
        self.answered = 0  # batches since its start
        self.running: Batch | None = None
        self.alive = False
        self._name = name
        self._process = ModelProcess(name)
        self._transport: asyncio.Transport | None = None
        self._frames = messages.Frames()
        self._regions = Regions(memory.HEADER_BYTES)
        self._numbers = itertools.count(1)
        self._batches: dict[int, Batch] = {}
        self._calls: dict[int, tuple[Call, Batch]] = {}
        self._taken: dict[int, int] = {}
        self._watchdog: asyncio.TimerHandle | None = None
        self._reply: asyncio.Future[messages.FromModel] | None = None
        self._counted = 0
        self._why = ""
        self._end: asyncio.Task[None] | None = None
        self._asks = Asks(find, self._process.sent, self._tell)

    # Its life.

    async def configure(self, file: str, config: str, memory_bytes_max: int, max_s: float) -> str:
        """Start the process and import the model; return its completed configuration (JSON).

        Raises FailedPreconditionError with the model's reason, UnavailableError.
        """
        connection = await self._process.start(memory_bytes_max)
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_unix_connection(lambda: self, sock=connection)
        self.alive = True
        self._end = loop.create_task(self._watch_end())
        reply = await self._ask(messages.Configure(file, config), max_s)
        if not isinstance(reply, messages.Configured):
            raise FailedPreconditionError("the model's process said something else")
        return reply.config

    async def initialize(self, setup: Setup, arguments: dict[str, str], *, decoupled: bool) -> None:
        """Make the model. Raises FailedPreconditionError with its reason, UnavailableError."""
        self.setup = setup
        await self._ask(messages.Initialize(arguments, decoupled), setup.start_max_s)

    async def _ask(self, message: messages.FromServer, max_s: float) -> messages.FromModel:
        self._reply = asyncio.get_running_loop().create_future()
        self._send(message)
        try:
            reply = await asyncio.wait_for(self._reply, max_s)
        except TimeoutError:
            raise FailedPreconditionError(
                "the model did not start in time", expected=f"at most {max_s:g} s"
            ) from None
        finally:
            self._reply = None
        if isinstance(reply, messages.Failed):
            raise FailedPreconditionError(reply.reason)
        return reply

    async def finalize(self, max_s: float) -> None:
        """Let the model end; kill it when it does not."""
        if self.alive:
            self._why = "it was unloaded"
            self._send(messages.Finalize())
        if self._end is not None:
            await asyncio.wait([self._end], timeout=max_s)
        await self.kill("it was unloaded")

    async def kill(self, why: str) -> None:
        """End the process and wait until it is gone."""
        self.end(why)
        if self._end is not None:
            await asyncio.wait([self._end])
        else:
            self._process.close()

    def end(self, why: str) -> None:
        """End the process; what is in it fails when it is gone."""
        self._why = self._why or why
        self._process.kill()

    async def _watch_end(self) -> None:
        code = await self._process.ended()
        reason = self._why or how(code)
        self.alive = False
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._process.close()
        self._asks.close()
        error = UnavailableError(
            f"the process of model '{self._name}' ended", got=reason, mend="try again"
        )
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)
        for call, _ in self._calls.values():
            call.fail(error)
        self._calls.clear()
        self._batches.clear()
        self.running = None
        if self.owner is not None:
            self.owner.ended(self, reason)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def resident_bytes(self) -> int:
        """How much memory the process has of its own."""
        return self._process.resident_bytes()

    @property
    def idle(self) -> bool:
        """Whether it has nothing to answer."""
        return not self._calls and self.running is None

    def give_back_memory(self) -> None:
        """Let the system have what large tensors took, while there are none."""
        if self.idle and not len(self._regions) and not len(self._asks):
            for each in (self._process.received, self._process.sent):
                if each.size > _IDLE_MEMORY_BYTES_MAX:
                    each.give_back()

    # Calls.

    def execute(self, lots: list[Lot]) -> None:
        """Run calls; each gets its answer by itself."""
        setup = self.setup
        assert setup is not None
        start_ns = time.monotonic_ns()
        calls = [lot for lot in lots if isinstance(lot, Call)]
        tensors = [
            [
                (name, datatype, array)
                for (name, datatype), array in zip(setup.inputs, call.arrays, strict=True)
                if array is not None
            ]
            for call in calls
        ]
        laid = [memory.sizes_of(some) for some in tensors]
        size = sum(each for _, each in laid)
        region = offset = self._regions.take(size)
        self._process.received.grow(region + size)
        requests = []
        for call, some, (raws, own_size) in zip(calls, tensors, laid, strict=True):
            places = memory.lay_out(self._process.received, offset, some, raws)
            offset += own_size
            call.holder, call.number = self, next(self._numbers)
            asked = call.asked
            requests.append(messages.Request(
                call.number, asked.request_id, places, list(asked.wanted), dict(asked.parameters)
            ))  # fmt: skip
        now_ns = time.monotonic_ns()
        queue_ns = start_ns - min(call.arrived_ns for call in calls)
        timing = Timing(queue_ns, now_ns - start_ns, 0, 0)
        rows = sum(call.rows for call in calls)
        batch = Batch(next(self._numbers), {c.number: c for c in calls}, region, rows, timing)
        self._batches[batch.number] = batch
        for call in calls:
            self._calls[call.number] = call, batch
        self.running = batch
        self._watchdog = asyncio.get_running_loop().call_later(
            setup.execute_max_s, self.end, f"a run took longer than {setup.execute_max_s:g} s"
        )
        self._send(messages.Execute(batch.number, requests))

    def leave(self, call: Call) -> None:
        """Nobody waits for a call any more."""
        if call.number in self._calls:
            self._send(messages.Cancel(call.number))

    def taken(self, call: Call) -> None:
        """One of a call's responses went on: another may come."""
        if call.number not in self._calls:
            return
        count = self._taken.get(call.number, 0) + 1
        if count >= _CREDIT_STEP:
            self._send(messages.Credit(call.number, count))
            count = 0
        self._taken[call.number] = count

    # What it says.

    def data_received(self, data: bytes) -> None:
        """Do what whole messages say. A process that talks nonsense is ended."""
        try:
            for frame in self._frames.take(data):
                self._hear(messages.to_server.decode(frame))
        except (ValueError, msgspec.DecodeError) as error:
            _LOG.error("model %s: its process talks nonsense: %s", self._name, error)
            self.end("its process talked nonsense")

    def connection_lost(self, exc: Exception | None) -> None:
        """Without a connection it is of no use; most likely it is ending."""
        self._process.kill()

    def _hear(self, message: messages.FromModel) -> None:
        if isinstance(message, messages.Done):
            self._done(message)
        elif isinstance(message, messages.Respond):
            self._answer(message.answer, time.monotonic_ns())
            self._copied(message.counted)
        elif isinstance(message, messages.Ask):
            self._asks.ask(message)
            self._copied(counted=True)
        elif isinstance(message, messages.Leave):
            self._asks.leave(message.number)
        elif isinstance(message, messages.Give):
            if self._regions.give(message.region):
                self._asks.given(message.region)
        elif isinstance(message, messages.Log):
            _LOG.log(message.level, "model %s: %s", self._name, message.text)
        elif self._reply is not None and not self._reply.done():
            self._reply.set_result(message)

    def _copied(self, counted: bool) -> None:
        if counted:
            self._counted += 1
            self._process.sent.count = self._counted

    def _done(self, message: messages.Done) -> None:
        batch = self._batches.get(message.batch)
        if batch is None or batch is not self.running:
            raise ValueError("an unknown batch is done")
        now_ns = time.monotonic_ns()
        batch.running = False
        batch.timing.infer_ns = now_ns - batch.sent_ns
        for answer in message.answers:
            self._answer(answer, now_ns)
        self._copied(message.counted)
        if message.fault is not None:
            error = error_of(message.fault)
            for number in list(batch.calls):
                self._settle(number, Part(None, final=True, error=error), batch.timing)
        batch.timing.output_ns = time.monotonic_ns() - now_ns
        assert self.owner is not None
        self.owner.executed(batch.rows, batch.timing)
        self._release(batch)
        self.answered += 1
        self.running = None
        if self._watchdog is not None:
            self._watchdog.cancel()
        self.owner.freed(self)

    def _answer(self, answer: messages.Answer, now_ns: int) -> None:
        found = self._calls.get(answer.number)
        if found is None:  # it was left, or its batch failed
            return
        call, batch = found
        timing = Timing(batch.timing.queue_ns, batch.timing.input_ns, now_ns - batch.sent_ns, 0)
        part = Part(None, answer.final, dict(answer.parameters))
        try:
            if answer.fault is not None:
                part.error = error_of(answer.fault)
            elif answer.tensors is not None:
                part.arrays = self._arrays(answer.tensors, call)
        except HeadraceError as error:
            part.error = error
        self._settle(answer.number, part, timing)

    def _arrays(self, places: list[messages.Place], call: Call) -> list[Array]:
        """Return copies of the outputs, in the signature's order."""
        assert self.setup is not None
        found = {place.name: memory.array_of(place, self._process.sent) for place in places}
        arrays: list[Any] = []
        for name in self.setup.outputs:
            array = found.get(name)
            if array is None:
                if name in call.asked.wanted:
                    raise InternalError(f"the model gave no output '{name}'")
                arrays.append(None)  # nobody wants it
            else:
                arrays.append(array if array.dtype == object else array.copy())
        return arrays

    def _settle(self, number: int, part: Part, timing: Timing) -> None:
        call, batch = self._calls[number]
        call.part(part, timing)
        if part.final or (call.parts is None and part.error is not None):
            del self._calls[number]
            del batch.calls[number]
            self._taken.pop(number, None)
            if not batch.running:
                self._release(batch)
                assert self.owner is not None
                self.owner.freed(self)

    def _release(self, batch: Batch) -> None:
        """Free what a batch had, if all of it is answered."""
        if not batch.calls and self._batches.pop(batch.number, None) is not None:
            self._regions.give(batch.region)

    def _tell(self, answer: messages.Answer, tensors: list[memory.Named] | None) -> int:
        """Send what another model answered; return the region that it takes."""
        region = -1
        if tensors is not None:
            raws, size = memory.sizes_of(tensors)
            region = self._regions.take(size)
            self._process.received.grow(region + size)
            places = memory.lay_out(self._process.received, region, tensors, raws)
            answer = msgspec.structs.replace(answer, tensors=places)
        self._send(messages.Told(answer, region))
        return region

    def _send(self, message: messages.FromServer) -> None:
        if self._transport is not None and self.alive:
            self._transport.write(messages.framed(message))
