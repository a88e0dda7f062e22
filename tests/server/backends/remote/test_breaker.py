"""The breaker against its three rules, and against a model of it."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.backends.remote.breaker import Admission, Breaker, Outcome

OPEN_NS = 100


def failed(breaker: Breaker, times: int, now_ns: int = 0) -> None:
    for _ in range(times):
        assert breaker.admit(now_ns) is Admission.PLAIN
        breaker.end(Admission.PLAIN, Outcome.FAILED, now_ns)


def test_failures_in_a_row_open_it_and_one_probe_closes_it() -> None:
    breaker = Breaker(3, OPEN_NS)
    failed(breaker, 2)
    breaker.end(Admission.PLAIN, Outcome.ANSWERED, 0)
    failed(breaker, 3)
    assert breaker.admit(99) is None
    assert breaker.opens_in_ns(99) == 1
    assert breaker.admit(100) is Admission.PROBE
    assert breaker.admit(100) is None
    breaker.end(Admission.PROBE, Outcome.ANSWERED, 100)
    failed(breaker, 2, 101)
    assert breaker.admit(101) is Admission.PLAIN


def test_a_probe_that_fails_opens_it_again_and_one_given_up_leaves_its_place() -> None:
    breaker = Breaker(1, OPEN_NS)
    failed(breaker, 1)
    assert breaker.admit(100) is Admission.PROBE
    breaker.end(Admission.PROBE, Outcome.FAILED, 150)
    assert breaker.opens_in_ns(150) == 100
    assert breaker.admit(250) is Admission.PROBE
    breaker.end(Admission.PROBE, Outcome.GIVEN_UP, 260)
    assert breaker.admit(260) is Admission.PROBE


def test_what_began_before_it_opened_changes_nothing() -> None:
    breaker = Breaker(2, OPEN_NS)
    breaker.end(Admission.PLAIN, Outcome.GIVEN_UP, 0)
    failed(breaker, 2)
    for outcome in Outcome:
        breaker.end(Admission.PLAIN, outcome, 50)
        assert breaker.opens_in_ns(50) == 50


class Machine(RuleBasedStateMachine):
    """Attempts come and end in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(2, OPEN_NS)
        self.now_ns = 0
        self.running: list[Admission] = []

    @rule(by_ns=st.integers(0, 150))
    def time_passes(self, by_ns: int) -> None:
        self.now_ns += by_ns

    @rule()
    def an_attempt(self) -> None:
        shown = self.breaker.opens_in_ns(self.now_ns)
        admission = self.breaker.admit(self.now_ns)
        assert (admission is None) == (shown > 0)
        if admission is not None:
            self.running.append(admission)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), outcome=st.sampled_from(Outcome))
    def one_ends(self, data: st.DataObject, outcome: Outcome) -> None:
        at = data.draw(st.integers(0, len(self.running) - 1))
        admission = self.running.pop(at)
        self.breaker.end(admission, outcome, self.now_ns)
        if admission is Admission.PROBE:
            expected = {Outcome.FAILED: OPEN_NS}.get(outcome, 0)
            assert self.breaker.opens_in_ns(self.now_ns) == expected

    @invariant()
    def one_probe_at_most(self) -> None:
        assert self.running.count(Admission.PROBE) <= 1

    @invariant()
    def it_never_stays_open(self) -> None:
        if Admission.PROBE not in self.running:
            assert self.breaker.opens_in_ns(self.now_ns + OPEN_NS) == 0


TestMachine = Machine.TestCase
