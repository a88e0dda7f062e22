"""One instance of a Python model: what it was asked, and what it says."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from headrace.errors import (
    FailedPreconditionError,
    HeadraceError,
    InternalError,
    UnavailableError,
)
from server.backends.contract import Host
from server.backends.python.asks import Asks
from server.backends.python.calls import Batch, Call, Group, error_of
from server.backends.python.link import Link
from server.backends.python.process import ModelProcess
from server.backends.python.regions import Regions
from server.backends.python.stub import memory, messages
from server.execution.batches import rows_of
from server.execution.engine import Array, Part
from server.execution.lots import Lot, Timing
from server.processes.child import how

_LOG = logging.getLogger(__name__)
_CREDIT_STEP = 16  # responses that were taken until the process hears of it
_IDLE_MEMORY_BYTES_MAX = 16 << 20


@dataclass(frozen=True, slots=True)
class Setup:
    """What all instances of a version have in common. Times are seconds."""

    name: str
    inputs: Sequence[tuple[str, str]]  # name, datatype
    outputs: list[str]
    output_datatypes: list[str]
    execute_max_s: float
    start_max_s: float
    finalize_max_s: float
    memory_bytes_max: int


class Owner(Protocol):
    """Who has instances."""

    def freed(self, instance: Instance) -> None:
        """It may take the next batch."""

    def over(self, instance: Instance) -> None:
        """The first of its batches runs no more."""

    def again(self, lots: list[Lot]) -> None:
        """Its process ended before it began with these."""

    def ended(self, instance: Instance, reason: str) -> None:
        """Its process is gone."""

    def executed(self, rows: int, timing: Timing) -> None:
        """A batch was run."""

    def keep_apart(self) -> None:
        """Its requests are not all alike: let them come one by one."""


class Instance(asyncio.Protocol):
    """One process with its calls. `setup` and `owner` are set before it executes anything."""

    def __init__(self, name: str, host: Host) -> None:
        self.setup: Setup | None = None
        self.owner: Owner | None = None
        self.answered = 0  # batches since its start
        self._sent: deque[Batch] = deque()  # the first of them runs
        self.alive = False
        self._name = name
        self._process = ModelProcess(name)
        self._link: Link | None = None
        self._frames = messages.Frames()
        self._regions = Regions(memory.HEADER_BYTES)
        self._next = 1  # the number of the next request
        self._last_batch = 0
        self._batches: dict[int, Batch] = {}
        self._calls: dict[int, tuple[Call | Group, Batch]] = {}
        self._taken: dict[int, int] = {}
        self._watchdog: asyncio.TimerHandle | None = None
        self._reply: asyncio.Future[messages.FromModel] | None = None
        self._counted = 0
        self._why = ""
        self._end: asyncio.Task[None] | None = None
        self._asks = Asks(host, self._process.sent, self._tell)

    # Its life.

    async def configure(self, file: str, config: str, memory_bytes_max: int, max_s: float) -> str:
        """Start the process and import the model; return its completed configuration (JSON).

        Raises FailedPreconditionError with the model's reason, UnavailableError.
        """
        connection = await self._process.start(memory_bytes_max)
        loop = asyncio.get_running_loop()
        link = Link(connection)
        link.transport, _ = await loop.create_unix_connection(lambda: self, sock=connection)
        self._link = link
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
            async with asyncio.timeout(max_s):
                reply = await self._reply
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
        while self._link is not None and (data := self._link.wait(0)):
            self.data_received(data)  # its last words
        self.alive = False
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._link is not None:
            self._link.close()
            self._link = None
        self._process.close()
        self._asks.close()
        error = UnavailableError(
            f"the process of model '{self._name}' ended", got=reason, mend="try again"
        )
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)
        waiting = self._take_back()
        for call in {id(call): call for call, _ in self._calls.values()}.values():
            call.fail(error)
        self._calls.clear()
        self._batches.clear()
        self._sent.clear()
        if self.owner is not None:
            self.owner.ended(self, reason)
            self.owner.again(waiting)

    def _take_back(self) -> list[Lot]:
        """Return the lots of which none began to run."""
        lots: list[Lot] = []
        for batch in list(self._sent)[1:]:
            for number in range(batch.first, batch.first + batch.count):
                self._calls.pop(number, None)
            lots += batch.lots
        for lot in lots:
            if isinstance(lot, Call):
                lot.holder = None
        return lots

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
        return not self._calls and not self._sent

    @property
    def running(self) -> Batch | None:
        """What it runs."""
        return self._sent[0] if self._sent else None

    @property
    def batches(self) -> int:
        """How many it runs, or is to run then."""
        return len(self._sent)

    def give_back_memory(self) -> None:
        """Let the system have what large tensors took, while there are none."""
        if self.idle and not len(self._regions) and not len(self._asks):
            for each in (self._process.received, self._process.sent):
                if each.size > _IDLE_MEMORY_BYTES_MAX:
                    each.give_back()

    # Calls.

    def execute(self, lots: list[Lot]) -> None:
        """Run lots; each gets its answer by itself."""
        setup = self.setup
        assert setup is not None
        assert self._link is not None
        start_ns = time.monotonic_ns()
        tensors = [
            [
                (name, datatype, array)
                for (name, datatype), array in zip(setup.inputs, lot.feeds(), strict=True)
                if array is not None
            ]
            for lot in lots
        ]
        laid = [memory.sizes_of(some) for some in tensors]
        size = sum([each for _, each in laid])
        region = offset = self._regions.take(size)
        self._process.received.grow(region + size)
        first = self._next
        requests = []
        for lot, some, (raws, own_size) in zip(lots, tensors, laid, strict=True):
            places = memory.lay_out(self._process.received, offset, some, raws)
            offset += own_size
            requests.append(self._request(lot, places))
        count = self._next - first
        now_ns = time.monotonic_ns()
        queue_ns = start_ns - min([lot.arrived_ns for lot in lots])
        timing = Timing(queue_ns, now_ns - start_ns, 0, 0)
        number = self._last_batch = self._last_batch + 1
        try:
            frame = messages.framed(messages.Execute(number, requests))
        except Exception:
            self._regions.give(region)
            raise
        batch = Batch(number, first, count, count, region, rows_of(lots), timing, now_ns, lots)
        for lot, request in zip(lots, requests, strict=True):
            if isinstance(lot, Call):
                self._calls[request.number] = lot, batch
            else:
                group = Group(lot, request.number), batch
                for each in range(request.number, request.number + request.count):
                    self._calls[each] = group
        self._batches[number] = batch
        self._sent.append(batch)
        if self._watchdog is None:
            self._watch(setup.execute_max_s)
        self._link.send(frame)

    def stay(self, max_ms: int) -> None:
        """Hear what it says within this time before the loop goes on: a run may end by then."""
        if self._link is not None and (data := self._link.wait(max_ms)):
            self.data_received(data)

    def _watch(self, for_s: float) -> None:
        self._watchdog = asyncio.get_running_loop().call_later(for_s, self._look)

    def _look(self) -> None:
        """End a run that takes too long. Most runs begin and end between two looks."""
        self._watchdog = None
        running = self.running
        if running is None:
            return
        assert self.setup is not None
        max_s = self.setup.execute_max_s
        left_s = max_s - (time.monotonic_ns() - running.began_ns) / 1e9
        if left_s > 0:
            self._watch(left_s)
        else:
            self.end(f"a run took longer than {max_s:g} s")

    def _request(self, lot: Lot, places: list[messages.Place]) -> messages.Request:
        assert self.setup is not None
        number = self._next
        self._next += lot.count
        if not isinstance(lot, Call):
            return messages.Request(number, "", places, self.setup.outputs, {}, lot.count)
        lot.holder, lot.number = self, number
        asked = lot.asked
        wanted = list(asked.wanted) or self.setup.outputs
        return messages.Request(number, asked.request_id, places, wanted, dict(asked.parameters))

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
            self._keep_apart()
            self._answer(message.answer, time.monotonic_ns())
            self._copied(message.counted)
        elif isinstance(message, messages.Ask):
            self._asks.ask(message)
            self._copied(counted=True)
        elif isinstance(message, messages.IsReady):
            self._asks.say_whether_ready(message)
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
        batch.timing.infer_ns = now_ns - batch.began_ns
        for answer in message.answers:
            self._answer(answer, now_ns)
        self._copied(message.counted)
        if message.fault is not None:
            error = error_of(message.fault)
            for number in range(batch.first, batch.first + batch.count):
                if number in self._calls:
                    self._settle(number, Part(None, final=True, error=error), batch.timing)
        batch.timing.output_ns = time.monotonic_ns() - now_ns
        assert self.owner is not None
        self.owner.executed(batch.rows, batch.timing)
        self._sent.popleft()
        self._release(batch)
        self.answered += 1
        if self._sent:
            self._sent[0].begin(now_ns)
        self.owner.over(self)
        self.owner.freed(self)

    def _answer(self, answer: messages.Answer, now_ns: int) -> None:
        found = self._calls.get(answer.number)
        if found is None:  # it was left, or its batch failed
            return
        call, batch = found
        timing = Timing(batch.timing.queue_ns, batch.timing.input_ns, now_ns - batch.began_ns, 0)
        if answer.parameters:
            self._keep_apart()
        outcome = self._outcome(answer, call)
        if answer.final and isinstance(call, Group) and call.is_all(answer.count):
            self._settle_all(call, batch, outcome, timing)
            return
        if answer.count != 1:
            raise ValueError("an answer is of other requests")
        part = Part(None, answer.final, dict(answer.parameters))
        if isinstance(outcome, HeadraceError):
            part.error = outcome
        else:
            part.arrays = outcome
        self._settle(answer.number, part, timing)

    def _outcome(
        self, answer: messages.Answer, call: Call | Group
    ) -> list[Array] | HeadraceError | None:
        """Return the outputs of a response, or its error; None for an end without a response."""
        try:
            if answer.fault is not None:
                return error_of(answer.fault)
            return None if answer.tensors is None else self._arrays(answer.tensors, call)
        except HeadraceError as error:
            return error

    def _arrays(self, places: list[messages.Place], call: Call | Group) -> list[Array]:
        """Return copies of the outputs, in the signature's order."""
        assert self.setup is not None
        found = {place.name: place for place in places}
        arrays: list[Any] = []
        for name, datatype in zip(self.setup.outputs, self.setup.output_datatypes, strict=True):
            place = found.get(name)
            array = None if place is None else memory.array_of(place, self._process.sent)
            if place is None or place.datatype != datatype:
                self._keep_apart()
                if isinstance(call, Group):
                    raise UnavailableError(
                        f"output '{name}' of the model was not as it used to be", mend="try again"
                    )
            if array is None:
                if isinstance(call, Call) and name in call.asked.wanted:
                    raise InternalError(f"the model gave no output '{name}'")
                arrays.append(None)  # nobody wants it
            else:
                arrays.append(array if array.dtype.hasobject else array.copy())
        return arrays

    def _keep_apart(self) -> None:
        """Let no more requests come joined: they are not all alike to this model."""
        assert self.owner is not None
        self.owner.keep_apart()

    def _settle(self, number: int, part: Part, timing: Timing) -> None:
        call, batch = self._calls[number]
        if isinstance(call, Group):
            call.take(number, part, timing)
        else:
            call.part(part, timing)
        many = isinstance(call, Call) and call.parts is not None
        if part.final or (part.error is not None and not many):
            del self._calls[number]
            self._taken.pop(number, None)
            self._ended(batch, 1)

    def _settle_all(
        self,
        group: Group,
        batch: Batch,
        outcome: list[Array] | HeadraceError | None,
        timing: Timing,
    ) -> None:
        for number in range(group.number, group.number + group.count):
            del self._calls[number]
        if outcome is None:
            group.fail(InternalError("the model gave no response"))
        elif isinstance(outcome, HeadraceError):
            group.fail(outcome)
        else:
            group.lot.answer(outcome, timing)
        self._ended(batch, group.count)

    def _ended(self, batch: Batch, count: int) -> None:
        batch.left -= count
        if batch is not self.running:
            self._release(batch)
            assert self.owner is not None
            self.owner.freed(self)

    def _release(self, batch: Batch) -> None:
        """Free what a batch had, if all of it is answered."""
        if not batch.left and self._batches.pop(batch.number, None) is not None:
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
        if self._link is not None and self.alive:
            self._link.send(messages.framed(message))
