"""One run: a seed's world, carried out on virtual time and checked at every step."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np

from features import definitions_from_source
from features.ingest.ingester import Ingester
from features.online.blocks import encode_payload
from features.online.event_log import ENTRY_BYTES, EventLog
from features.online.keys import BACKLOG_BYTES, CHECKPOINT, DEAD_LETTERS, EVENTS, Checkpoint, Offset
from features.online.payload import EventBatch, check_batch, pushed_sources
from features.online.reader import ServiceReader
from features.online.scripts import PUSH
from features.online.store import OnlineStore
from features.types import Column
from headrace.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    HeadraceError,
    ResourceExhaustedError,
    UnavailableError,
)
from tests.sim import oracle
from tests.sim.loop import SimLoop, run_virtually
from tests.sim.network import FakeNetwork
from tests.sim.oracle import Event
from tests.sim.store import FakeStore, Reply, Stream, id_of
from tests.sim.world import Step, World, column, event_batch, make_world
from tests.support.window_rows import meaning

URL = "redis://sim:6379"
# A client that has just failed to connect fails at once for up to a second (and a call takes one).
FAULT_ECHO_S = 2.5
# What a call may take beyond its deadline, or a quiet store to answer: a few slow latencies.
SLACK_S = 0.2


@dataclass
class LogEntry:
    """One entry that the log has held; `events` is None where it is poison."""

    offset: Offset
    payload: bytes
    events: list[Event] | None


@dataclass
class Life:
    """An ingester from its start to its crash or end."""

    ingester: Ingester
    store: OnlineStore
    task: asyncio.Task[None]
    epoch: int


@dataclass(frozen=True)
class Client:
    """A worker: its store, its log to push to, its reader."""

    store: OnlineStore
    log: EventLog
    reader: ServiceReader


class Simulation:
    """Carries out a world's plan. `failure` says what was wrong first."""

    def __init__(self, seed: int, world: World, loop: SimLoop) -> None:
        self.world = world
        self.loop = loop
        self.rng = random.Random(seed + 1_000_003)
        self.definitions = definitions_from_source(world.source.encode())
        self.schema_ids = {name: 7 + i for i, name in enumerate(self.definitions.stored_views)}
        self.store = FakeStore(lambda: 1_363_348_800_000 + int(loop.time() * 1000))
        self.store.on_step = self._stepped
        self.network = FakeNetwork(loop, self.store, self.rng)
        loop.network = self.network
        self.payloads: dict[bytes, list[Event] | None] = {}
        self.history: list[LogEntry] = []
        self.commits: list[tuple[float, Offset]] = []
        self.acknowledged: list[Offset] = []
        self.lives: list[Life] = []
        self.epoch = 0
        self.tasks: list[asyncio.Task[None]] = []
        self.failure: str | None = None
        self.trace: list[str] = []
        self.answered = 0
        self.emptied = False

    # What is noted

    def note(self, text: str) -> None:
        self.trace.append(f"{self.loop.time():9.4f} {text}")

    def check(self, right: bool, what: str) -> None:
        if not right and self.failure is None:
            self.failure = what
            self.note(f"WRONG: {what}")

    @property
    def checkpoint(self) -> Checkpoint | None:
        value = self.store.strings.get(CHECKPOINT)
        return None if value is None else Checkpoint.decode(value)

    def _stepped(self, name: str, reply: Reply) -> None:
        """After each script: what must hold of the store at any time."""
        if name == "push" and isinstance(reply, bytes):
            payload = self.store.streams[EVENTS].entries[-1][1][1]
            self.history.append(LogEntry(Offset(*id_of(reply)), payload, self.payloads[payload]))
            self.note(f"log has {reply.decode()}")
        checkpoint = self.checkpoint
        if checkpoint is None:
            return
        if name == "write" and isinstance(reply, list):
            last = self.commits[-1][1] if self.commits else Offset(0, 0)
            self.check(checkpoint.offset > last, f"checkpoint fell to {checkpoint.offset}")
            self.commits.append((self.loop.time(), checkpoint.offset))
            self.note(f"checkpoint {checkpoint}")
        elif name == "take over":
            self.note(f"took over: {reply!r}")
        done = [entry for entry in self.history if entry.offset <= checkpoint.offset]
        events = sum(len(entry.events or ()) for entry in done)
        self.check(checkpoint.sequence == events, f"{checkpoint.sequence=} after {events} events")
        stream = self.store.streams.get(EVENTS, Stream())
        waiting = [(entry.offset, entry.payload) for entry in self.history[len(done) :]]
        self.check(
            [(Offset(*entry), fields[1]) for entry, fields in stream.entries] == waiting,
            "the log does not hold just what waits",
        )
        size = sum(len(payload) + ENTRY_BYTES for _, payload in waiting)
        counted = int(self.store.strings.get(BACKLOG_BYTES, b"0"))
        self.check(counted == size, f"{counted} bytes counted, {size} wait")
        dead = self.store.streams.get(DEAD_LETTERS, Stream()).entries
        poison = [str(entry.offset).encode() for entry in done if entry.events is None]
        self.check([fields[1] for _, fields in dead] == poison, "dead letters are not the poison")

    @property
    def excused(self) -> float:
        """When the store was last at fault, an echo included: errors are allowed until then."""
        now_s = self.loop.time()
        return now_s if self.network.faulty else self.network.last_fault_s + FAULT_ECHO_S

    # Ingesters

    def start(self, epoch: int) -> Life:
        store = OnlineStore(URL)
        cache = self.world.cache_bytes_max
        ingester = Ingester(self.definitions, self.schema_ids, store, epoch, cache_bytes_max=cache)
        life = Life(ingester, store, self.loop.create_task(ingester.run()), epoch)
        life.task.add_done_callback(lambda _: self._ended(life))
        self.lives.append(life)
        self.note(f"ingester {len(self.lives)} starts, epoch {epoch}")
        return life

    def start_newer(self) -> Life:
        self.epoch += 1
        return self.start(self.epoch)

    def _ended(self, life: Life) -> None:
        number = self.lives.index(life) + 1
        if life.task.cancelled():
            self.note(f"ingester {number} crashed")
            return
        error = life.task.exception()
        self.note(f"ingester {number} stopped: {error}")
        rivals = [other for other in self.lives if other.epoch >= life.epoch and other is not life]
        self.check(
            isinstance(error, FailedPreconditionError) and (bool(rivals) or self.emptied),
            f"ingester {number} stopped without a rival: {error!r}",
        )

    @property
    def living(self) -> list[Life]:
        return [life for life in self.lives if not life.task.done()]

    async def crash(self, life: Life) -> None:
        life.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, HeadraceError):
            await life.task
        await life.store.close()

    # Clients

    def client(self) -> Client:
        store = OnlineStore(URL)
        log = EventLog(store, self.definitions, backlog_bytes_max=self.world.backlog_bytes_max)
        service = self.definitions.service("service")
        return Client(store, log, ServiceReader(service, store, self.schema_ids))

    async def push(self, client: Client, step: Step) -> None:
        sources = pushed_sources(self.definitions)
        batches = [event_batch(events, told=told) for events, told in step.batches]
        payload = encode_payload([check_batch(batch, sources) for batch in batches])
        self.payloads[payload] = [event for events, _ in step.batches for event in events]
        for _ in range(step.tries):
            began_s = self.loop.time()
            try:
                offset = Offset(*id_of((await client.log.push(batches)).encode()))
            except UnavailableError as error:
                self.check(began_s <= self.excused, f"a push failed: {error}")
                self.note(f"push failed: {error}")
                await asyncio.sleep(0.3)
            except ResourceExhaustedError as error:
                small = self.world.backlog_bytes_max < 1 << 20
                self.check(small or began_s <= self.excused, f"a push was refused: {error}")
                self.note(f"push refused: {error.message}")
                await asyncio.sleep(0.3)
            else:
                kept = [entry for entry in self.history if entry.offset == offset]
                self.check(
                    [entry.payload for entry in kept] == [payload], f"{offset} is not in the log"
                )
                self.acknowledged.append(offset)
                return

    async def poison(self, client: Client) -> None:
        # In turn what is none of ours, and a whole one that fits no source.
        number = len(self.payloads)
        payload = b"\xc1 poison %d" % number
        if number % 2:
            payload = encode_payload([EventBatch("poison", {}, np.array([number]))])
        self.payloads[payload] = None
        arguments: list[str | bytes | int] = [64 << 20, len(payload) + ENTRY_BYTES, payload]
        with contextlib.suppress(UnavailableError, ResourceExhaustedError):
            await client.store.run(PUSH, [EVENTS, BACKLOG_BYTES], arguments)

    def barrier(self, step: Step) -> Offset | None:
        if step.barrier == "beyond":
            newest = self.history[-1].offset if self.history else Offset(0, 0)
            return Offset(newest.milliseconds + 1_000_000, 0)
        if step.barrier == "none" or not self.acknowledged:
            return None
        if step.barrier == "newest":
            return self.acknowledged[-1]
        return self.acknowledged[int(step.within_s * 1000) % len(self.acknowledged)]

    async def read(self, client: Client, step: Step) -> None:
        began_s = self.loop.time()
        wanted = self.barrier(step)
        first = max(len(self.commits) - 1, 0)
        existed = self.checkpoint is not None
        deadline_s = began_s + step.within_s
        try:
            batch = await client.reader.read(
                asked(step),
                np.array(step.times_us, dtype=np.int64),
                None if wanted is None else str(wanted),
                int(deadline_s * 1e9),
                self.loop.time_ns,
            )
        except DeadlineExceededError as error:
            self.note(f"read ran out of time: {error}")
            self.check(self.loop.time() >= deadline_s - 1e-6, f"too early: {error}")
            self._check_deadline(began_s, deadline_s, wanted)
        except UnavailableError as error:
            self.note(f"read failed: {error}")
            self.check(not existed or began_s <= self.excused, f"a read failed: {error}")
        else:
            self._check_answer(step, batch, wanted, first)
        self.check(self.loop.time() <= max(deadline_s, began_s) + SLACK_S, "late for the deadline")

    def _check_deadline(self, began_s: float, deadline_s: float, wanted: Offset | None) -> None:
        """Running out of time is right only where the store or the ingester was not in time."""
        in_time_s = deadline_s - SLACK_S
        passed = [at for at, offset in self.commits if wanted is None or offset >= wanted]
        ready = passed and passed[0] <= in_time_s and began_s <= in_time_s
        self.check(not ready or began_s <= self.excused, "out of time, and all was there in time")

    def _check_answer(self, step: Step, batch, wanted: Offset | None, first: int) -> None:  # type: ignore[no-untyped-def]
        """The whole answer is that of one checkpoint between the call and its answer."""
        self.answered += 1
        points = [offset for _, offset in self.commits[first:]]
        if first == 0:
            points.insert(0, Offset(0, 0))
        points = [offset for offset in points if wanted is None or offset >= wanted]
        self.check(bool(points), f"answered before {wanted}")
        wrong: list[str] = []
        for point in points:
            wrong = self._differences(step, batch, point)
            if not wrong:
                return
        self.check(not points, f"a read as of {points}: " + "; ".join(wrong[:3]))

    def _differences(self, step: Step, batch, point: Offset) -> list[str]:  # type: ignore[no-untyped-def]
        events = self.events_until(point)
        columns = batch.service.columns
        wrong = []
        for row, ((rider, city), t_us) in enumerate(zip(step.rows, step.times_us, strict=True)):
            keys = {"rider": rider, "city": city}
            expected = {}
            for view in self.world.views:
                key = tuple(keys[name] for name in view.keys)
                lenient = oracle.may_be_unavailable(view, events, key, t_us)
                for name, cell in oracle.answers(view, events, key, t_us).items():
                    expected[f"{view.name}:{name}"] = (cell, lenient)
            if sorted(expected) != sorted(columns):
                return [f"columns {columns}, expected {list(expected)}"]
            for k, name in enumerate(columns):
                got = (int(batch.status[row, k]), int(batch.words[row, k]))
                cell, lenient = expected[name]
                if got != cell and not (lenient and got == (oracle.UNAVAILABLE, 0)):
                    wrong.append(f"row {row} {name}: got {got}, expected {cell}")
        return wrong

    def events_until(self, point: Offset) -> list[Event]:
        events: list[Event] = []
        for entry in self.history:
            if entry.offset <= point:
                events += entry.events or ()
        return [replace(event, sequence=i) for i, event in enumerate(events)]

    # The plan

    async def run(self) -> None:
        clients = [self.client(), self.client()]
        self.start_newer()
        for step in self.world.plan:
            self.note(str(step))
            self.carry_out(step, clients[step.client])
            await asyncio.sleep(step.wait_s)
            if not self.living and self.rng.random() < 0.5:
                self.start_newer()
            if self.failure:
                break
        await self.settle()
        if self.failure is None:
            await self.finish(clients)
        for client in clients:
            await client.store.close()
        for life in self.lives:
            await self.crash(life)

    def carry_out(self, step: Step, client: Client) -> None:
        kind = step.kind
        if kind == "push":
            self._spawn(self.push(client, step))
        elif kind == "poison":
            self._spawn(self.poison(client))
        elif kind == "read":
            self._spawn(self.read(client, step), step.cancel_after_s)
        elif kind in {"newer", "older", "same"}:
            if kind == "newer":
                self.start_newer()
            else:
                self.start(self.epoch - (kind == "older"))
        elif kind == "crash":
            if self.living:
                self._spawn(self.crash(self.rng.choice(self.living)))
        else:
            self._spawn(self.fault(step))

    async def fault(self, step: Step) -> None:
        network = self.network
        network.fault()
        if step.kind == "cut":
            network.cut_all()
        elif step.kind == "forget":
            self.store.known_scripts.clear()
        elif step.kind == "stall":
            network.stalled_until_s = self.loop.time() + step.for_s
            await asyncio.sleep(step.for_s)
        elif step.kind == "flaky":
            network.lose = step.amount
            await asyncio.sleep(step.for_s)
            network.lose = 0.0
        elif step.kind == "down":
            network.down = True
            network.cut_all()
            await asyncio.sleep(step.for_s)
            network.down = False
        else:
            assert step.kind == "memory"
            self.store.out_of_memory = True
            await asyncio.sleep(step.for_s)
            self.store.out_of_memory = False
        network.fault()

    def _spawn(self, life, cancel_after_s: float | None = None) -> None:  # type: ignore[no-untyped-def]
        task = self.loop.create_task(life)
        self.tasks.append(task)
        if cancel_after_s is not None:
            self.loop.call_later(cancel_after_s, task.cancel)

    async def settle(self) -> None:
        """Wait for all that was begun; what is wrong in the simulation itself is raised here."""
        for task in self.tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.tasks.clear()

    async def finish(self, clients: list[Client]) -> None:
        """When all is well again, everything acknowledged is there, and nothing else."""
        await asyncio.sleep(FAULT_ECHO_S)
        for life in self.living:
            await self.crash(life)
        self.start_newer()
        last = self.history[-1].offset if self.history else None
        within_s = self.loop.time() + 30.0
        while last and (self.checkpoint is None or self.checkpoint.offset < last):
            if self.loop.time() > within_s:
                self.check(False, f"the ingester does not arrive at {last}")
                return
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.5)
        newest = max(
            (e.created_time_us for e in self.events_until(last or Offset(0, 0))), default=0
        )
        rows = tuple((rider, "Ulm") for rider in (None, *range(6)))
        every = Step("read", 0, rows=rows, times_us=(newest,) * 7, barrier="newest", within_s=2.0)
        before = self.answered
        for client in clients:
            await self.read(client, every)
        self.check(self.answered == before + 2, "a read of a healthy store was not answered")
        self._check_counters()
        rows_now, ttls_now = self.store.rows(), dict(self.store.ttl_ms)
        alone = await uninterrupted(self, self.history)
        now, then = (
            meaning(rows, self.definitions, self.schema_ids, newest)
            for rows in (rows_now, alone.rows())
        )
        self.check(now == then, "the rows are not those of an uninterrupted run")
        self.check(ttls_now == alone.ttl_ms, "the times to live are not those")
        if self.world.wiped_at_the_end and self.failure is None:
            await self._wipe(clients, every)

    def _check_counters(self) -> None:
        """No life counts what another counted, and calm ones count everything."""
        if len({life.epoch for life in self.lives}) < len(self.lives):
            return  # two under one epoch, against the rules: nothing is lost, but both may count
        totals: dict[str, int] = {}
        for life in self.lives:
            for name, count in vars(life.ingester.counters).items():
                totals[name] = totals.get(name, 0) + count
        events = [event for entry in self.history for event in entry.events or ()]
        source_keys = {(view.source, view.keys) for view in self.world.views}
        expected = {
            "entries": len(self.history),
            "events": len(events),
            "dead_letters": sum(entry.events is None for entry in self.history),
            "future_stamped": sum(event.quarantined for event in events),
            "keyless": sum(
                event.source == source and any(event.values[name] is None for name in keys)
                for event in events
                for source, keys in source_keys
            ),
        }
        calm = len(self.lives) == 2 and self.network.last_fault_s < 0
        for name, count in expected.items():
            fits = totals[name] == count if calm else totals[name] <= count
            self.check(fits, f"counted {totals[name]} {name} of {count}")

    async def _wipe(self, clients: list[Client], every: Step) -> None:
        """A store that was emptied: no worker that knew it answers from it again."""
        self.note("the store is emptied")
        self.store.on_step = lambda _, __: None
        self.store.wipe()
        self.emptied = True
        old = self.living[-1]
        batch = event_batch((Event("trips", 0, 0, dict.fromkeys(
            ("rider", "city", "minutes", "fare"))),), told=False)  # fmt: skip
        await clients[0].log.push([batch])
        for fresh in (False, True):
            if fresh:
                self.check(old.task.done(), "an ingester went on in an emptied store")
                self.start_newer()
                await asyncio.sleep(1.0)
            for client in clients:
                with contextlib.suppress(UnavailableError):
                    await client.reader.read(
                        asked(every),
                        np.array(every.times_us, dtype=np.int64),
                        None,
                        self.loop.time_ns() + 10**9,
                        self.loop.time_ns,
                    )
                    self.check(False, "an emptied store was served from")
            await asyncio.sleep(1.0)


def asked(step: Step) -> dict[str, Column]:
    """A read's inputs."""
    riders, cities = zip(*step.rows, strict=True)
    return {"rider": column(list(riders), "Int64"), "city": column(list(cities), "String")}


async def uninterrupted(simulation: Simulation, history: list[LogEntry]) -> FakeStore:
    """Ingest a log in one go and return the store."""
    loop = simulation.loop
    store = FakeStore(simulation.store.now_ms)
    stream = store.streams[EVENTS] = Stream()
    stream.entries = [(tuple(e.offset), [b"b", e.payload]) for e in history]
    before, loop.network = loop.network, FakeNetwork(loop, store, random.Random(0))
    client = OnlineStore(URL)
    ingester = Ingester(simulation.definitions, simulation.schema_ids, client, 1)
    task = loop.create_task(ingester.run())
    while history and (
        ingester.checkpoint is None or ingester.checkpoint.offset < history[-1].offset
    ):
        await asyncio.sleep(0.05)
        assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await client.close()
    loop.network = before
    return store


@dataclass
class Outcome:
    failure: str | None
    trace: list[str]
    answered: int
    plan: list[Step]


def simulate(seed: int, keep: list[int] | None = None) -> Outcome:
    """Run a seed's world; with `keep`, only those steps of its plan."""
    world = make_world(seed)
    if keep is not None:
        world.plan = [world.plan[i] for i in keep]
    simulations: list[Simulation] = []

    async def main(loop: SimLoop) -> None:
        simulation = Simulation(seed, world, loop)
        simulations.append(simulation)
        await simulation.run()

    raised: list[str] = []
    with _repeatable(seed):
        try:
            raised += run_virtually(main)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this seed's failure
            raised.append(repr(error))
    simulation = simulations[0]
    if raised:
        simulation.failure = f"nobody caught {raised}"
    return Outcome(simulation.failure, simulation.trace, simulation.answered, world.plan)


@contextlib.contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Seed what the code under test draws (jitter, a store's id); keep its log quiet."""
    state = random.getstate()
    logger = logging.getLogger("features")
    level = logger.level
    random.seed(seed)
    logger.setLevel(logging.CRITICAL)
    try:
        with mock.patch("os.urandom", random.Random(seed).randbytes):
            yield
    finally:
        logger.setLevel(level)
        random.setstate(state)


def shortened(seed: int, tries_max: int = 150) -> Outcome:
    """Return a failing run of as few of the plan's steps as so many tries find."""
    keep = list(range(len(make_world(seed).plan)))
    best = simulate(seed)
    size = len(keep) // 2
    tries = 0
    while size and tries < tries_max:
        for at in range(0, len(keep), size):
            fewer = keep[:at] + keep[at + size :]
            tries += 1
            outcome = simulate(seed, fewer)
            if outcome.failure and _kind(outcome.failure) == _kind(best.failure or ""):
                keep, best = fewer, outcome
                break
        else:
            size //= 2
    return best


def _kind(failure: str) -> str:
    """What stays of a failure when its numbers are taken away."""
    return re.sub(r"[0-9].*", "", failure)[:20]


def report(seed: int) -> str:
    """What a failing seed prints: how to run it again, what is wrong, and the shortened trace."""
    outcome = shortened(seed)
    steps = "\n".join(f"  {step}" for step in outcome.plan)
    trace = "\n".join(f"  {line}" for line in outcome.trace[-60:])
    return (
        f"seed {seed}: {outcome.failure}\n"
        f"again: HEADRACE_SIM_SEED={seed} pytest tests/sim\n"
        f"{make_world(seed).source}"
        f"shortened to {len(outcome.plan)} steps:\n{steps}\ntrace:\n{trace}"
    )
