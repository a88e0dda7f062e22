"""The online path under faults, from seeds: `HEADRACE_SIM_SEED=123 pytest tests/sim` runs one."""

from __future__ import annotations

import os

import pytest

from tests.sim.simulation import report, shortened, simulate
from tests.sim.store import FakeStore

SEED = os.environ.get("HEADRACE_SIM_SEED")
# Those that once failed stand at the end: an ingester that took its own late write for a rival's, a
# caller that left while the store could not be reached.
SEEDS = [int(SEED)] if SEED else [*range(28), 2214, 66]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_answer_is_the_oracles_and_nothing_is_lost(seed: int) -> None:
    outcome = simulate(seed)
    if outcome.failure:
        pytest.fail(report(seed), pytrace=False)


def test_a_seed_determines_everything() -> None:
    assert simulate(12).trace == simulate(12).trace


def test_what_is_broken_is_found_and_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that forgets to compare the checkpoint before it writes."""
    write = FakeStore._write

    def careless(store: FakeStore, keys: list[bytes], arguments: list[bytes]) -> object:
        arguments[0] = store.strings.get(keys[0], b"")
        return write(store, keys, arguments)

    monkeypatch.setattr(FakeStore, "_write", careless)
    seed = next(seed for seed in range(40) if simulate(seed).failure)
    whole = simulate(seed)
    short = shortened(seed)
    assert short.failure
    assert len(short.plan) < len(whole.plan) / 2
    assert f"HEADRACE_SIM_SEED={seed}" in report(seed)
