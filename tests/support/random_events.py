"""Random pushes of the small world of `rides`, in the order in which they became known."""

from __future__ import annotations

import numpy as np

from features.online.payload import EventBatch
from tests.support.rides import HOUR_US, MINUTE_US, NOON_US, SECOND_US, people, rides, shifts

DRIVERS = 6
CITIES = ("Ulm", "Bonn", "Zürich", None)
VEHICLES = ("van", "car", None)

Rng = np.random.Generator


def maybe(rng: Rng, value: float, nothing: float = 0.1) -> float | None:
    return None if rng.random() < nothing else value


def stamps(rng: Rng, count: int, low_us: int, high_us: int) -> list[tuple[int, int]]:
    """(created, event), ascending: most events on time, some late, a few from a broken clock."""
    out = []
    for _ in range(count):
        created = int(rng.integers(low_us, high_us + 1)) // SECOND_US * SECOND_US
        late = rng.choice([0, 0, 0, MINUTE_US, 20 * MINUTE_US, 5 * HOUR_US, -MINUTE_US, -HOUR_US])
        out.append((created, created - int(late)))
    return sorted(out)


def random_push(rng: Rng, low_us: int, high_us: int, events: int = 8) -> list[EventBatch]:
    """A push of batches whose events became known in [low, high]; in that order."""
    batches = []
    when = stamps(rng, int(rng.integers(1, events + 1)), low_us, high_us)
    rows = [
        (
            event,
            int(rng.integers(DRIVERS)) if rng.random() > 0.05 else None,
            CITIES[rng.integers(len(CITIES))],
            None if rng.random() < 0.1 else int(rng.integers(-5, 90)),
            maybe(
                rng,
                float(
                    rng.choice(
                        [rng.normal(20, 8), 0.1, -0.0, 1e17, np.nan], p=[0.4, 0.2, 0.2, 0.1, 0.1]
                    )
                ),
            ),
        )
        for _, event in when
    ]
    batches.append(rides(*rows, created=[created for created, _ in when]))
    if rng.random() < 0.5:
        when = stamps(rng, 3, low_us, high_us)
        shifts_rows = [
            (
                event,
                int(rng.integers(DRIVERS)),
                VEHICLES[rng.integers(len(VEHICLES))],
                int(rng.integers(9)),
                maybe(rng, float(rng.normal())),
            )
            for _, event in when
        ]
        batches.append(shifts(*shifts_rows, created=[created for created, _ in when]))
    if rng.random() < 0.2:
        batches.append(people((low_us, int(rng.integers(DRIVERS)), NOON_US)))
    return batches
