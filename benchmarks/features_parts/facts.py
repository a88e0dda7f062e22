"""What is served: entities with 50 and with 250 float features each, as last-known values.

Ours and Feast's processes make the same numbers from here; nothing of ours is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WIDTHS = (50, 250)
ENTITIES = 1_000
FIRST_ID = 1_000  # of an entity: all ids are as long, so that a call's answers are, too
SEED = 6


def view_of(width: int) -> str:
    """Return the name of the view of so many features."""
    return f"facts_{width}"


def service_of(width: int) -> str:
    """Return the name of the service that serves all features of that view."""
    return f"service_{width}"


def key_of(width: int) -> str:
    """Return the join key of that view's entity."""
    return f"user_{width}_id"


def names_of(width: int) -> list[str]:
    """Return the names of its features."""
    return [f"f{place:03}" for place in range(width)]


def values_of(width: int) -> Any:
    """Return float64 [ENTITIES, width], none of them whole: each is a full double for all."""
    import numpy as np

    return np.random.default_rng(SEED + width).normal(size=(ENTITIES, width)) * 100


def ids() -> range:
    """Return every entity's id."""
    return range(FIRST_ID, FIRST_ID + ENTITIES)


def calls_for(rows: int) -> int:
    """Return how many different calls of so many rows are made in turns in process."""
    return max(8, 64 // rows)


def calls_of(count: int, rows: int) -> list[list[int]]:
    """Return the entities of so many calls: different ones in each call, `rows` of them."""
    import numpy as np

    random = np.random.default_rng(SEED + rows)
    return [random.choice(ids(), rows, replace=False).tolist() for _ in range(count)]


def wrong(got: Any, entities: Sequence[int], width: int) -> str | None:
    """Say what is wrong about an answer (values by entity, then feature); None: it is right."""
    import numpy as np

    wanted = values_of(width)[np.array(entities) - FIRST_ID]
    got = np.asarray(got, np.float64)
    if got.shape != wanted.shape:
        return f"{got.shape} values instead of {wanted.shape}"
    if not np.array_equal(got, wanted):
        place = tuple(int(each[0]) for each in np.nonzero(got != wanted))
        return f"{got[place]!r} instead of {wanted[place]!r} at {place}"
    return None
