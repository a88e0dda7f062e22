from hypothesis import given
from hypothesis import strategies as st

from server.processes.restarts import RestartPolicy, Restarts

POLICY = RestartPolicy(base_s=0.5, cap_s=4.0, stable_s=30.0, failures_max=6)


def test_waits_double_up_to_the_cap_and_then_it_is_a_crash_loop() -> None:
    restarts = Restarts(POLICY)
    assert [restarts.delay_s(0.0, 0.5) for _ in range(7)] == [0.5, 1.0, 2.0, 4.0, 4.0, None, None]


def test_a_stable_time_forgives() -> None:
    restarts = Restarts(POLICY)
    for _ in range(5):
        restarts.delay_s(29.9, 0.5)
    assert restarts.delay_s(30.0, 0.5) == 0.5
    assert restarts.failures == 1


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1, exclude_max=True)), max_size=30))
def test_every_wait_is_bounded_and_giving_up_needs_deaths_in_a_row(
    deaths: list[tuple[float, float]],
) -> None:
    restarts = Restarts(POLICY)
    short = 0
    for ready_s, jitter in deaths:
        wait_s = restarts.delay_s(ready_s, jitter)
        short = 1 if ready_s >= POLICY.stable_s else short + 1
        if wait_s is None:
            assert short >= POLICY.failures_max
        else:
            assert short < POLICY.failures_max
            assert POLICY.base_s * 0.5 <= wait_s <= POLICY.cap_s * 1.5  # a sum rounds up
