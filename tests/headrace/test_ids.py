"""Prediction ids: the UUIDv7 layout, uniqueness, and the time that prunes partitions."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.ids import WORKER_MAX, PredictionIds, id_bytes, id_text, id_time_us

TIMES_US = st.integers(0, 4_000_000_000_000_000)


@given(worker=st.integers(0, WORKER_MAX), random=st.integers(0, 2**64 - 1), time_us=TIMES_US)
def test_an_id_is_a_valid_uuid7_that_holds_its_time(worker: int, random: int, time_us: int) -> None:
    taken = PredictionIds(worker, random).take(time_us)
    parsed = uuid.UUID(bytes=taken)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert id_time_us(taken) == time_us // 1000 * 1000
    assert id_bytes(id_text(taken)) == taken


def test_ids_of_two_workers_and_two_starts_never_meet() -> None:
    makers = [PredictionIds(w, r) for w in (0, 1, WORKER_MAX) for r in (1, 2)]
    taken = [maker.take(1_000_000) for maker in makers for _ in range(70_000)]
    assert len(set(taken)) == len(taken)


def test_ids_of_one_worker_sort_by_time() -> None:
    maker = PredictionIds(3, 9)
    taken = [maker.take(ms * 1000) for ms in range(100)]
    assert taken == sorted(taken)


def test_a_worker_number_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="worker number"):
        PredictionIds(WORKER_MAX + 1, 0)
