"""Thousands of events of one entity: states that were folded, blocks that were merged."""

from __future__ import annotations

import numpy as np
import pytest

from features.windows.layout import EXACT_LAG_US
from tests.features.oracle import Event
from tests.features.windows.world import (
    ENGINE,
    SECOND_US,
    WINDOWS,
    columns,
    expected,
    inserted,
)

STEP_US = 9 * SECOND_US


def stream(seed: int, count: int, wild: bool) -> list[Event]:
    """Events in the order in which they became known: some late, some ahead, some at edges."""
    rng = np.random.default_rng(seed)
    events = []
    for sequence in range(count):
        event_us = sequence * STEP_US + int(rng.integers(-20, 20)) * SECOND_US
        event_us -= event_us % (10 * SECOND_US) if rng.random() < 0.3 else 0
        late = [0, 0, 3 * SECOND_US, 240 * SECOND_US, 3000 * SECOND_US, -200 * SECOND_US]
        fare = float(rng.choice([1.25, 0.1, 1e-9, 7e8, -2.5]))
        if wild:
            fare = float(rng.choice([fare, 1e200, -1e-200, -0.0]))
        values = {
            "delay": None if rng.random() < 0.1 else int(rng.integers(-50, 50)),
            "fare": None if rng.random() < 0.1 else fare,
            "rating": None if rng.random() < 0.1 else 1e9 + int(rng.integers(-900, 900)) / 8,
            "shared": bool(rng.random() < 0.5),
            "note": None if rng.random() < 0.5 else "x",
        }
        created_us = event_us + int(rng.choice(late, p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.05]))
        events.append(Event(event_us, created_us, sequence, values))
    return sorted(events, key=lambda e: e.arrival)


@pytest.mark.parametrize(("seed", "wild"), [(1, False), (2, True)])
def test_history_and_stream_of_a_long_life_answer_as_the_oracle(seed: int, wild: bool) -> None:
    events = stream(seed, 1500, wild)
    rng = np.random.default_rng(seed)
    state, done = b"", 0
    checked = 0
    for cut in sorted(rng.integers(1, len(events), 40).tolist()):
        state, _ = inserted(ENGINE, state, *columns(events[done:cut]))
        done = cut
        now_us = events[cut - 1].created_time_us
        back_us = now_us - int(rng.integers(0, EXACT_LAG_US))
        ahead_us = now_us + int(rng.choice([w.length_us for w in WINDOWS]))
        times = [now_us, now_us + 1, back_us, ahead_us]
        known = events[:cut]
        words, status = ENGINE.query([state] * len(times), np.array(times))
        event, created, values, valid = columns(known)
        nobody = np.zeros(len(known), dtype=np.int64)
        again, again_status = ENGINE.history(
            nobody, event, created, values, valid, np.zeros(len(times), np.int64), np.array(times)
        )
        for row, t_us in enumerate(times):
            wanted = expected(known, t_us)
            assert (again[row].tolist(), again_status[row].tolist()) == wanted
            if t_us == back_us and status[row].max() > 1:
                continue  # more events within the lag than are kept
            assert (words[row].tolist(), status[row].tolist()) == wanted
            checked += 1
    assert checked > 100
    assert ENGINE.record_bytes * len(events) > 1.5 * len(state)
