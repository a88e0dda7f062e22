from hypothesis import given
from hypothesis import strategies as st

from server.processes.sequences import Sequences


def test_a_gap_is_what_is_missing() -> None:
    sequences = Sequences()
    assert sequences.observe(0, b"a", 0, 10) == 0
    assert sequences.observe(0, b"a", 15, 5) == 5
    assert (sequences.lost, sequences.restarts) == (5, 0)


def test_a_worker_that_was_started_again_begins_at_0() -> None:
    sequences = Sequences()
    sequences.observe(0, b"a", 0, 10)
    assert sequences.observe(0, b"b", 30, 2) == 30
    assert sequences.observe(0, b"a", 10, 1) == 0  # sent before the end, read after it
    assert (sequences.lost, sequences.restarts, sequences.repeated) == (30, 1, 0)


def test_what_comes_twice_is_told_and_changes_nothing() -> None:
    sequences = Sequences()
    sequences.observe(0, b"a", 0, 10)
    sequences.observe(0, b"a", 10, 5)
    assert sequences.observe(0, b"a", 10, 5) is None
    assert sequences.observe(0, b"a", 15, 1) == 0
    assert (sequences.lost, sequences.restarts, sequences.repeated) == (0, 0, 5)


def test_a_worker_that_has_run_for_long_is_met_where_it_is() -> None:
    sequences = Sequences()
    assert sequences.observe(0, b"a", 1_000_000, 10) == 0
    assert sequences.observe(0, b"a", 1_000_012, 1) == 2
    assert sequences.lost == 2


def test_a_worker_of_a_release_without_start_tokens_is_restarted_by_a_lower_number() -> None:
    sequences = Sequences()
    assert sequences.observe(0, None, 0, 10) == 0
    assert sequences.observe(0, None, 3, 2) == 3
    assert (sequences.lost, sequences.restarts) == (3, 1)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50), st.booleans()), max_size=50),
)
def test_lost_is_exactly_what_was_not_sent_since_the_first(
    batches: list[tuple[int, int, bool]],
) -> None:
    sequences = Sequences()
    sent_to: dict[int, int] = {}
    missing: dict[int, int] = {}
    met: set[int] = set()
    lost = 0
    for worker, rows, arrives in batches:
        first = sent_to.get(worker, 0)
        sent_to[worker] = first + rows
        if arrives:
            before = missing.pop(worker, 0)
            sequences.observe(worker, b"a", first, rows)
            lost += before if worker in met else 0
            met.add(worker)
        else:
            missing[worker] = missing.get(worker, 0) + rows
    assert sequences.lost == lost
    assert sequences.restarts == 0
