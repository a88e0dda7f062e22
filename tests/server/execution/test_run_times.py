"""Expected run times: by size, at most so where unknown, unmoved by one held-up run."""

from __future__ import annotations

from server.execution.run_times import RunTimes


def test_nothing_is_expected_before_the_first_run() -> None:
    assert RunTimes().expected_ns(7) == 0


def test_each_size_has_its_own_average() -> None:
    times = RunTimes()
    times.learn(1, 1000)
    times.learn(256, 20_000)
    assert times.expected_ns(1) == 1000
    assert times.expected_ns(300) == 20_000


def test_an_unknown_size_is_expected_to_take_at_most_its_share_of_a_smaller_one() -> None:
    times = RunTimes()
    times.learn(4, 1000)
    times.learn(64, 4000)
    assert times.expected_ns(8) == 2000
    assert times.expected_ns(128) == 8000
    assert times.expected_ns(1) == 1000  # no smaller one is known: no more than the next


def test_one_run_that_was_held_up_does_not_make_a_slow_model() -> None:
    times = RunTimes()
    times.learn(1, 10_000)
    times.learn(1, 1_000_000_000)
    assert times.expected_ns(1) == 24_000
    for _ in range(40):
        times.learn(1, 1_000_000_000)
    assert times.expected_ns(1) > 900_000_000
    for _ in range(80):
        times.learn(1, 10_000)
    assert times.expected_ns(1) < 11_000
