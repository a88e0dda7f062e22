"""Sequences without a model: any interleaving, and no state is ever another one's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.errors import InvalidArgumentError, ResourceExhaustedError, UnavailableError
from server.execution import sequences
from server.execution.sequences import Direct, Lot, Sequencer, Turn

IDLE_NS = 100


def oldest(slots: int = 2) -> Sequencer:
    return Sequencer("m", 1, slots, IDLE_NS)


def direct(slots: int = 4, lanes: int = 1, **policy: Any) -> Sequencer:
    return Sequencer("m", lanes, slots, IDLE_NS, Direct(**policy))


def start(core: Sequencer, name: int | str, now_ns: int = 0, **flags: Any) -> Turn:
    return core.arrive(name, **{"start": True, "end": False, **flags}, now_ns=now_ns)


def follow(core: Sequencer, name: int | str, now_ns: int = 0, **flags: Any) -> Turn:
    return start(core, name, now_ns, **{"start": False, **flags})


def test_a_request_of_no_sequence_is_refused_in_tritons_words() -> None:
    for none in (0, ""):
        with pytest.raises(InvalidArgumentError) as caught:
            start(oldest(), none)
        assert caught.value.message.startswith(
            "inference request to model 'm' must specify a non-zero or non-empty correlation ID"
        )


def test_a_sequence_that_was_not_started_here_is_refused_with_the_mend() -> None:
    core = oldest()
    with pytest.raises(InvalidArgumentError) as caught:
        follow(core, 42)
    assert caught.value.message.startswith(
        "inference request for sequence 42 to model 'm' must specify the START flag on the first "
        "request of the sequence"
    )
    assert "over one connection" in caught.value.message
    start(core, 42, end=True)
    with pytest.raises(InvalidArgumentError, match="START flag"):
        follow(core, 42)
    assert core.waiting == 1


def test_of_one_sequence_one_request_runs_at_a_time() -> None:
    core = oldest()
    first, second = start(core, 1), follow(core, 1)
    assert core.due(0) == [Lot(0, [first])]
    assert core.due(0) == []
    core.done(first, 0)
    assert core.due(0) == [Lot(0, [second])]


def test_what_finds_no_slot_waits_for_one() -> None:
    core = oldest(slots=1)
    first, other = start(core, "a"), start(core, "b", end=True)
    assert core.due(0) == [Lot(0, [first])]
    core.done(first, 0)
    assert core.due(0) == []
    last = follow(core, "a", end=True)
    assert core.due(0) == [Lot(0, [last])]
    core.done(last, 0)
    assert core.due(0) == [Lot(0, [other])]
    core.done(other, 0)
    assert (len(core), core.free_slots) == (0, 1)


def test_a_name_that_starts_again_and_again_lets_others_run() -> None:
    core = oldest(slots=1)
    first, again = start(core, "a", end=True), start(core, "a", end=True)
    other = start(core, "b", end=True)
    order = []
    for _ in range(3):
        ((_, (turn,)),) = core.due(0)
        order.append(turn)
        assert turn is not None
        core.done(turn, 0)
    assert order == [first, other, again]
    assert core.free_slots == 1


def test_a_start_ends_what_was_open_in_its_slot() -> None:
    core = oldest(slots=1)
    first = start(core, 1)
    core.due(0)
    first.sequence.state = "old"
    core.done(first, 0)
    again = start(core, 1)
    core.due(0)
    assert again.sequence is first.sequence
    assert again.sequence.state is None


def test_direct_runs_the_slots_of_a_lane_together_and_in_place() -> None:
    core = direct(slots=4)
    a, b, c = start(core, "a"), start(core, "b"), start(core, "c")
    assert core.due(0) == [Lot(0, [a, b, c])]
    early, other = follow(core, "a"), start(core, "d")
    assert core.due(0) == []  # the lane runs
    assert core.wake_ns() == IDLE_NS
    for turn in (a, b, c):
        core.done(turn, 0)
    third = follow(core, "c")
    assert core.due(0) == [Lot(0, [early, None, third, other])]


def test_direct_spreads_sequences_over_lanes() -> None:
    core = direct(slots=2, lanes=2)
    a, b, c = start(core, "a"), start(core, "b"), start(core, "c")
    assert core.due(0) == [Lot(0, [a, c]), Lot(1, [b])]


def test_direct_joins_only_what_is_of_one_shape() -> None:
    core = direct()
    a = core.arrive("a", start=True, end=False, now_ns=0, shape=(1,))
    b = core.arrive("b", start=True, end=False, now_ns=0, shape=(2,))
    c = core.arrive("c", start=True, end=False, now_ns=0, shape=(1,))
    assert core.due(0) == [Lot(0, [a, None, c])]
    core.done(a, 0)
    core.done(c, 0)
    assert core.due(0) == [Lot(0, [None, b])]


def test_direct_waits_for_company_as_long_as_it_is_told() -> None:
    core = direct(slots=4, delay_ns=50, share=0.5)
    a = start(core, "a", now_ns=10)
    assert core.due(59) == []
    assert core.wake_ns() == 60
    assert core.due(60) == [Lot(0, [a])]
    core.done(a, 60)
    a2, b = follow(core, "a", 61), start(core, "b", 61)
    assert core.due(61) == [Lot(0, [a2, b])]
    assert core.wake_ns() == 161  # nothing is due before the first is idle


def test_what_nobody_continues_is_over() -> None:
    core = oldest(slots=2)
    a, b, c = start(core, "a"), start(core, "b", 5), start(core, "c", 6)
    for turn in (a, b):
        core.due(6)
        core.done(turn, 6)
    core.due(6)
    assert core.wake_ns() == 105 or core.wake_ns() == 106
    assert core.expire(105) == []
    assert sorted(map(str, core.expire(106))) == ["a", "b"]
    assert core.due(106) == [Lot(0, [c])]
    assert core.expire(1_000) == []  # it runs
    core.done(c, 1_000)
    assert core.expire(1_100) == ["c"]
    assert core.wake_ns() is None
    assert core.free_slots == 2


def test_what_is_given_up_takes_those_behind_it_along() -> None:
    core = oldest(slots=1)
    first, second, third = start(core, 1), follow(core, 1), follow(core, 1)
    again = start(core, 1)
    core.due(0)
    assert core.give_up(first) == []  # it runs: what it changes is changed
    assert core.give_up(second) == [third]
    core.done(first, 0)
    assert core.due(0) == [Lot(0, [again])]
    last = follow(core, 1)
    assert core.give_up(last) == []
    with pytest.raises(InvalidArgumentError, match="START flag"):
        follow(core, 1)
    core.done(again, 0)
    assert (len(core), core.free_slots) == (0, 1)


def test_who_is_given_up_in_the_backlog_leaves_it() -> None:
    core = oldest(slots=1)
    first, other = start(core, 1), start(core, 2)
    assert core.give_up(other) == []
    assert len(core) == 1
    core.due(0)
    core.done(first, 0)
    assert core.due(0) == []


def test_a_sequence_whose_state_is_lost_is_over_up_to_its_next_start() -> None:
    core = oldest(slots=1)
    first, second, again = start(core, 1), follow(core, 1), start(core, 1)
    core.due(0)
    assert core.forget(first.sequence) == [second]
    core.done(first, 0)
    assert core.due(0) == [Lot(0, [again])]
    assert core.forget(again.sequence) == []
    core.done(again, 0)
    assert core.free_slots == 1


def test_one_that_retires_goes_on_with_what_it_has() -> None:
    core = oldest()
    start(core, 1)
    core.retire()
    with pytest.raises(UnavailableError, match="stopped accepting"):
        start(core, 2)
    follow(core, 1, end=True)


def test_sequences_and_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "SEQUENCES_MAX", 2)
    monkeypatch.setattr(sequences, "WAITING_MAX", 3)
    core = oldest(slots=1)
    start(core, 1)
    start(core, 2)
    with pytest.raises(ResourceExhaustedError, match="too many sequences"):
        start(core, 3)
    follow(core, 2)
    with pytest.raises(ResourceExhaustedError, match="queue of model 'm' is full"):
        follow(core, 2)


class Interleavings(RuleBasedStateMachine):
    """Requests carry numbers; a run appends its number to its sequence's state."""

    @initialize(
        lanes=st.integers(1, 2),
        slots=st.integers(1, 3),
        policy=st.sampled_from([None, Direct(), Direct(20, 0.6)]),
    )
    def begin(self, lanes: int, slots: int, policy: Direct | None) -> None:
        self.now_ns = 0
        self.core = Sequencer("m", lanes, slots, IDLE_NS, policy)
        self.slots = lanes * slots
        self.is_direct = policy is not None
        self.accepted: dict[int, list[Turn]] = {}  # by name, what has neither run nor fallen
        self.states: dict[int, list[int]] = {}  # what each name's state has to be
        self.running: list[Turn] = []
        self.lots: list[Lot] = []

    @rule(name=st.integers(1, 5), start=st.booleans(), end=st.booleans(), shape=st.integers(0, 1))
    def arrive(self, name: int, start: bool, end: bool, shape: int) -> None:
        try:
            turn = self.core.arrive(name, start=start, end=end, now_ns=self.now_ns, shape=shape)
        except InvalidArgumentError:
            assert not start
            return
        self.accepted.setdefault(name, []).append(turn)

    @rule()
    def run(self) -> None:
        for lot in self.core.due(self.now_ns):
            its = [turn for turn in lot.turns if turn is not None]
            assert its
            assert self.is_direct or lot.turns == its
            for turn in its:
                name = turn.sequence.name
                assert isinstance(name, int)
                assert self.accepted[name].pop(0) is turn  # in order
                assert turn.sequence not in [other.sequence for other in self.running]
                place = turn.sequence.place
                assert place is not None
                assert place.lane == lot.lane
                if self.is_direct:
                    assert lot.turns[place.slot] is turn
                    assert len({other.shape for other in its}) == 1
                if turn.start:
                    self.states[name] = []
                assert (turn.sequence.state or []) == self.states[name]
                self.running.append(turn)
            if self.is_direct:
                assert all(other.lane != lot.lane for other in self.lots)
                self.lots.append(lot)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), lost=st.sampled_from([False] * 9 + [True]))
    def finish(self, data: st.DataObject, lost: bool) -> None:
        turn = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        name = turn.sequence.name
        assert isinstance(name, int)
        if lost:
            for fallen in self.core.forget(turn.sequence):
                assert self.accepted[name].pop(0) is fallen
        else:
            self.states[name].append(turn.number)
            turn.sequence.state = list(self.states[name])
        self.core.done(turn, self.now_ns)
        self.lots = [
            lot for lot in self.lots if any(turn in self.running for turn in lot.turns if turn)
        ]

    @precondition(lambda self: any(self.accepted.values()))
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        turn = data.draw(st.sampled_from([turn for its in self.accepted.values() for turn in its]))
        name = turn.sequence.name
        assert isinstance(name, int)
        gone = [turn, *self.core.give_up(turn)]
        its = self.accepted[name]
        at = its.index(turn)
        assert its[at : at + len(gone)] == gone
        del its[at : at + len(gone)]
        assert not its[at:] or its[at].start

    @rule(ns=st.integers(1, 60))
    def wait(self, ns: int) -> None:
        self.now_ns += ns
        for name in self.core.expire(self.now_ns):
            assert isinstance(name, int)
            assert not self.accepted.get(name)
            assert name not in [turn.sequence.name for turn in self.running]

    @invariant()
    def slots_are_neither_lost_nor_shared(self) -> None:
        if not hasattr(self, "core"):
            return
        held = [
            sequence.place
            for sequence in self.core._sequences.values()
            if sequence.place is not None
        ]
        assert len(set(held)) == len(held)
        assert len(held) + self.core.free_slots == self.slots
        assert self.core.waiting == sum(map(len, self.accepted.values()))
        if len(self.core) > len(held):
            assert not self.core.free_slots

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        for _ in range(1_000):
            while self.running:
                turn = self.running.pop()
                self.states[turn.sequence.name].append(turn.number)  # type: ignore[index]
                turn.sequence.state = list(self.states[turn.sequence.name])  # type: ignore[index]
                self.core.done(turn, self.now_ns)
            self.lots = []
            if self.core.wake_ns() is None:
                break
            self.now_ns += IDLE_NS
            self.run()
            self.core.expire(self.now_ns)
        assert (len(self.core), self.core.waiting) == (0, 0)
        assert self.core.free_slots == self.slots


TestInterleavings = Interleavings.TestCase
