"""Sequences: requests that belong together, and which of them may run now. No IO, no clock.

A sequence has a slot of a lane (a model instance) from its start to its end, or waits for one. Of
one sequence one request runs at a time, in the order in which they came. The strategies are
Triton's (core, sequence_batch_scheduler): *oldest* lets the sequences of a lane run beside each
other, *direct* runs a lane's slots together, each in its place.

What was sent is applied once and in order, or its caller gets an error: a request that is given up
before it ran takes those behind it along, up to the next start.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NamedTuple

from headrace.errors import InvalidArgumentError, ResourceExhaustedError, UnavailableError

SequenceId = int | str
# Of one model, with those that wait for a slot; and requests of them that wait.
SEQUENCES_MAX = 4096
WAITING_MAX = 4096
_MEND = (
    "the worker that gets a sequence's start holds it: send all of its requests over one "
    "connection, none later than max_sequence_idle_microseconds after the one before"
)


class Place(NamedTuple):
    """A slot. Heaps give the lowest free one, of all lanes in turn."""

    slot: int
    lane: int


@dataclass(slots=True, eq=False)
class Sequence:
    """One sequence of the name `name`, or several of that name one after another.

    `state` and `shape` (what has to be equal for it to join others) are the runner's; a start
    resets them.
    """

    name: SequenceId
    touched_ns: int
    place: Place | None = None
    state: Any = None
    shape: Hashable = None
    waiting: deque[Turn] = field(default_factory=deque)
    running: Turn | None = None
    is_open: bool = True  # what is no start may come
    is_over: bool = False  # what ran last was an end


@dataclass(slots=True, eq=False)
class Turn:
    """One request. Turns of one `shape` can run together."""

    sequence: Sequence
    start: bool
    end: bool
    arrived_ns: int
    number: int  # of its arrival
    shape: Hashable = None
    payload: Any = None


class Lot(NamedTuple):
    """Turns that run now in one lane. None is a slot that has none: of the direct strategy only,
    whose turns are in the places of their slots."""

    lane: int
    turns: list[Turn | None]


@dataclass(frozen=True, slots=True)
class Direct:
    """The direct strategy: a lane runs when `share` of its slots have a request, or when the first
    of them has waited for `delay_ns`."""

    delay_ns: int = 0
    share: float = 0.0


class Sequencer:
    """The sequences of one model. All times are monotonic.

    Without `direct` the strategy is oldest. A sequence without a request for `idle_ns` is over.
    """

    def __init__(
        self, model: str, lanes: int, slots: int, idle_ns: int, direct: Direct | None = None
    ) -> None:
        self._model = model
        self._slots = slots
        self._idle_ns = idle_ns
        self._direct = direct
        self._free = [Place(slot, lane) for slot in range(slots) for lane in range(lanes)]
        self._sequences: dict[SequenceId, Sequence] = {}  # who was touched longest ago is first
        self._backlog: deque[Sequence] = deque()
        self._ready: dict[Sequence, None] = {}  # have a slot, a request, and none that runs
        self._busy = [0] * lanes  # turns that run
        self._count = 0
        self._waiting = 0
        self._retired = False

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
        return self._waiting

    @property
    def free_slots(self) -> int:
        """How many slots no sequence has."""
        return len(self._free)

    def retire(self) -> None:
        """Let no further sequence start."""
        self._retired = True

    # What comes in.

    def arrive(
        self, name: SequenceId, *, start: bool, end: bool, now_ns: int, shape: Hashable = None
    ) -> Turn:
        """Return the turn of a request that came.

        Raises InvalidArgumentError, in Triton's words, where `name` is none or no sequence of it is
        open, UnavailableError and ResourceExhaustedError.
        """
        if not name:
            raise InvalidArgumentError(
                f"inference request to model '{self._model}' must specify a non-zero or non-empty "
                "correlation ID"
            )
        if start and self._retired:
            raise UnavailableError(
                "Server is stopping, scheduler for model has stopped accepting new inference "
                "requests"
            )
        sequence = self._sequences.get(name)
        if not start and (sequence is None or not sequence.is_open):
            raise InvalidArgumentError(
                f"inference request for sequence {name} to model '{self._model}' must specify the "
                "START flag on the first request of the sequence",
                mend=_MEND,
            )
        if self._waiting >= WAITING_MAX:
            raise ResourceExhaustedError(
                f"the queue of model '{self._model}' is full", expected=f"at most {WAITING_MAX}"
            )
        if sequence is None:
            sequence = self._begin(name, now_ns)
        self._count += 1
        turn = Turn(sequence, start, end, now_ns, self._count, shape)
        sequence.waiting.append(turn)
        self._waiting += 1
        sequence.is_open = not end
        self._touch(sequence, now_ns)
        self._look_at(sequence)
        return turn

    def _begin(self, name: SequenceId, now_ns: int) -> Sequence:
        if len(self._sequences) >= SEQUENCES_MAX:
            raise ResourceExhaustedError(
                f"too many sequences of model '{self._model}'", expected=f"at most {SEQUENCES_MAX}"
            )
        sequence = Sequence(name, now_ns)
        self._sequences[name] = sequence
        if self._free:
            sequence.place = heapq.heappop(self._free)
        else:
            self._backlog.append(sequence)
        return sequence

    def is_waiting(self, turn: Turn) -> bool:
        """Return whether a turn has not begun to run."""
        return turn in turn.sequence.waiting

    def give_up(self, turn: Turn) -> list[Turn]:
        """Take a turn back for which nobody waits any more; return those that fall with it.

        One that runs is not held up: what it changes is changed.
        """
        sequence = turn.sequence
        if not self.is_waiting(turn):
            return []
        at = sequence.waiting.index(turn)
        del sequence.waiting[at]
        self._waiting -= 1
        return self._fall(sequence, at)

    def forget(self, sequence: Sequence) -> list[Turn]:
        """End a sequence whose state is lost; return the turns that fall, up to the next start."""
        return self._fall(sequence, 0)

    def _fall(self, sequence: Sequence, at: int) -> list[Turn]:
        """Take out the turns from place `at` on, up to the next start."""
        turns = list(sequence.waiting)
        end = at
        while end < len(turns) and not turns[end].start:
            end += 1
        sequence.waiting = deque(turns[:at] + turns[end:])
        self._waiting -= end - at
        if end == len(turns):
            sequence.is_open = False
        self._look_at(sequence)
        return turns[at:end]

    # What runs.

    def due(self, now_ns: int) -> list[Lot]:
        """Take out what is to run now; `done` has to be told of every turn of it."""
        ready = sorted(self._ready, key=lambda sequence: sequence.waiting[0].number)
        if self._direct is None:
            return [self._lot([sequence]) for sequence in ready]
        by_lane: dict[int, list[Sequence]] = {}
        for sequence in ready:
            assert sequence.place is not None
            by_lane.setdefault(sequence.place.lane, []).append(sequence)
        return [
            self._lot(_alike(sequences))
            for lane, sequences in by_lane.items()
            if not self._busy[lane] and now_ns >= self._due_ns(self._direct, sequences)
        ]

    def _due_ns(self, direct: Direct, ready: list[Sequence]) -> int:
        """Return when a lane is to run for these; the oldest is the first of them."""
        arrived_ns = ready[0].waiting[0].arrived_ns
        if len(ready) >= ceil(direct.share * self._slots):
            return arrived_ns
        return arrived_ns + direct.delay_ns

    def _lot(self, sequences: list[Sequence]) -> Lot:
        lane = 0
        turns: list[Turn | None] = []
        for sequence in sequences:
            assert sequence.place is not None
            slot, lane = sequence.place
            turn = sequence.waiting.popleft()
            self._waiting -= 1
            sequence.running = turn
            if turn.start:
                sequence.state = sequence.shape = None
            del self._ready[sequence]
            if self._direct is None:
                turns.append(turn)
                continue
            turns += [None] * (slot + 1 - len(turns))
            turns[slot] = turn
        self._busy[lane] += len(sequences)
        return Lot(lane, turns)

    def done(self, turn: Turn, now_ns: int) -> None:
        """Take note that a turn has run, whatever came of it."""
        sequence = turn.sequence
        assert sequence.place is not None
        sequence.running = None
        sequence.is_over = turn.end
        self._busy[sequence.place.lane] -= 1
        self._touch(sequence, now_ns)
        self._look_at(sequence)

    # What ends.

    def expire(self, now_ns: int) -> list[SequenceId]:
        """End the sequences that nobody continued; return their names."""
        ended: list[SequenceId] = []
        while (sequence := self._first()) is not None:
            if now_ns - sequence.touched_ns < self._idle_ns:
                break
            if sequence.waiting or sequence.running is not None:  # its requests wait for it
                self._touch(sequence, now_ns)
                continue
            ended.append(sequence.name)
            sequence.is_open = False
            self._look_at(sequence)
        return ended

    def wake_ns(self) -> int | None:
        """Return when to look again (`due`, `expire`) if nothing comes until then."""
        times = [] if (first := self._first()) is None else [first.touched_ns + self._idle_ns]
        if self._direct is not None:
            for sequence in self._ready:
                assert sequence.place is not None
                if not self._busy[sequence.place.lane]:
                    times.append(sequence.waiting[0].arrived_ns + self._direct.delay_ns)
        return min(times, default=None)

    def _first(self) -> Sequence | None:
        """Return the sequence that was touched longest ago."""
        return next(iter(self._sequences.values()), None)

    def _touch(self, sequence: Sequence, now_ns: int) -> None:
        sequence.touched_ns = now_ns
        self._sequences[sequence.name] = self._sequences.pop(sequence.name)

    def _look_at(self, sequence: Sequence) -> None:
        """See what has become of a sequence: ready, in its slot still, or over."""
        if sequence.running is not None:
            return
        waiting = sequence.waiting
        if sequence.place is None:
            if not waiting:
                self._backlog.remove(sequence)
                del self._sequences[sequence.name]
            return
        self._ready.pop(sequence, None)
        if not waiting and sequence.is_open:
            return
        # Another sequence of the same name waits its turn as any other one does.
        if waiting and not (waiting[0].start and self._backlog and sequence.is_over):
            self._ready[sequence] = None
            return
        place, sequence.place = sequence.place, None
        if waiting:
            sequence.is_over = False
            self._backlog.append(sequence)
        else:
            del self._sequences[sequence.name]
        self._give(place)

    def _give(self, place: Place) -> None:
        if not self._backlog:
            heapq.heappush(self._free, place)
            return
        following = self._backlog.popleft()
        following.place = place
        self._ready[following] = None


def _alike(ready: list[Sequence]) -> list[Sequence]:
    """Return those that can run together with the first of them."""

    def form(sequence: Sequence) -> Hashable:
        turn = sequence.waiting[0]
        return turn.shape, None if turn.start else sequence.shape

    wanted = form(ready[0])
    return [sequence for sequence in ready if form(sequence) == wanted]
