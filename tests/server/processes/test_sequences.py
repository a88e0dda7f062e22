from hypothesis import given
from hypothesis import strategies as st

from server.processes.sequences import Sequences


def test_a_gap_is_what_is_missing() -> None:
    sequences = Sequences()
    assert sequences.observe(0, 0, 10) == 0
    assert sequences.observe(0, 15, 5) == 5
    assert sequences.observe(1, 2, 1) == 2
    assert (sequences.lost, sequences.restarts) == (7, 0)


def test_a_worker_that_was_started_again_begins_at_0() -> None:
    sequences = Sequences()
    sequences.observe(0, 0, 10)
    assert sequences.observe(0, 3, 2) == 3
    assert sequences.restarts == 1


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50), st.booleans()), max_size=50),
)
def test_lost_is_exactly_what_was_never_sent(batches: list[tuple[int, int, bool]]) -> None:
    sequences = Sequences()
    sent_to: dict[int, int] = {}
    missing: dict[int, int] = {}
    lost = 0
    for worker, rows, arrives in batches:
        first = sent_to.get(worker, 0)
        sent_to[worker] = first + rows
        if arrives:
            sequences.observe(worker, first, rows)
            lost += missing.pop(worker, 0)
        else:
            missing[worker] = missing.get(worker, 0) + rows
    assert sequences.lost == lost
    assert sequences.restarts == 0
