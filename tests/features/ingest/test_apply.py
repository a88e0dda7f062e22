"""Applying events: the same rows however many come at once, and what cannot count is counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.ingest.apply import STORAGE_SLACK_US, Applier, Changes
from features.ingest.entries import Entry, decode
from features.online.blocks import encode_payload
from features.online.payload import EventBatch, check_batch, pushed_sources
from headrace.errors import FailedPreconditionError
from tests.support.random_events import random_push
from tests.support.rides import (
    DEFINITIONS,
    HOUR_US,
    MINUTE_US,
    NOON_US,
    SCHEMA_IDS,
    people,
    rides,
    shifts,
)

SOURCES = pushed_sources(DEFINITIONS)


class Table:
    """A store of rows in a dict, and an applier that works on it."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.sequence = 0
        self.applier = Applier(DEFINITIONS, SCHEMA_IDS)

    def apply(self, *pushes: list[EventBatch]) -> list[Changes]:
        payloads = [encode_payload([check_batch(b, SOURCES) for b in push]) for push in pushes]
        group = decode([Entry(b"1-%d" % i, p) for i, p in enumerate(payloads)], SOURCES)
        assert group.dead == []
        plan = self.applier.plan([(b, self.sequence + places) for b, places in group.arrived])
        self.sequence += group.events
        changes = self.applier.apply(plan, {key: self.rows.get(key) for key in plan.keys})
        for group in changes:
            group.apply_to(self.rows)
        return changes


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_rows_do_not_hang_on_how_many_entries_come_together(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    pushes = [
        # Not even in the order of created times: whatever the log's order, it is the order.
        random_push(rng, NOON_US, NOON_US + int(rng.integers(1, 90)) * MINUTE_US)
        for _ in range(sum(sizes))
    ]
    one_by_one, grouped, at_once = Table(), Table(), Table()
    for push in pushes:
        one_by_one.apply(push)
    at_once.apply(*pushes)
    first = 0
    for size in sizes:
        grouped.apply(*pushes[first : first + size])
        first += size
    assert one_by_one.sequence == at_once.sequence == grouped.sequence > 0
    assert one_by_one.rows == at_once.rows
    assert one_by_one.rows == grouped.rows


def test_events_without_a_key_and_from_a_broken_clock_are_counted() -> None:
    table = Table()
    table.apply(
        [
            rides(
                (NOON_US, None, "Ulm", 1, 1.0),
                (NOON_US + HOUR_US, 1, None, 1, 1.0),
                (NOON_US, 2, "Ulm", 1, 1.0),
                created=[NOON_US, NOON_US, NOON_US],
            )
        ]
    )
    # Without a driver there is no key of either entity; without a city there is none of the pair.
    assert table.applier.take_counts() == {"future_stamped": 1, "keyless": 3, "too_late": 0}
    assert table.applier.take_counts() == {}


def test_what_no_window_reaches_when_it_becomes_known_is_counted() -> None:
    table = Table()
    # A window and its hop more: 7 d and 1 h for the driver's longest, 6 h and 5 min for the pair's.
    for hours, late in ((6, 0), (7, 1), (200, 2)):
        then = NOON_US - hours * HOUR_US
        table.apply([rides((then, 1, "Ulm", 1, 1.0), created=[NOON_US])])
        assert table.applier.take_counts()["too_late"] == late
    # History that comes late to the log is not late by its own times.
    table.apply([rides((NOON_US - 200 * HOUR_US, 1, "Ulm", 1, 1.0))])
    assert table.applier.take_counts()["too_late"] == 0


def test_rows_leave_the_store_by_themselves_when_nobody_can_ask_for_them() -> None:
    changes = Table().apply(
        [
            rides((NOON_US, 1, "Ulm", 1, 1.0)),
            shifts((NOON_US, 1, "van", 1, 1.0)),
            people((NOON_US, 1, NOON_US)),
        ]
    )
    ttl_ms = {group.keys[0].split(b"}:")[-1].split(b":")[0]: group.ttl_ms for group in changes}
    kept_hours = {b"driver_rides": 7 * 24 + 1, b"pair_rides": 6 + 1 / 12, b"last_shift": 12}
    expected = {
        view: (hours * HOUR_US + STORAGE_SLACK_US) // 1000 for view, hours in kept_hours.items()
    } | {b"person": 0}
    assert ttl_ms == expected


def test_a_row_that_stays_as_it_was_is_not_written() -> None:
    table = Table()
    table.apply([shifts((NOON_US, 1, "van", 1, 1.0))])
    # Far behind the newest: two are kept at most, and from then on nobody can ask for older ones.
    for hours in (3, 4):
        assert len(table.apply([shifts((NOON_US - hours * HOUR_US, 1, "van", 1, 1.0))])) == 1
    assert table.apply([shifts((NOON_US - 5 * HOUR_US, 1, "car", 1, 1.0))]) == []


def test_a_view_without_a_schema_id_is_named() -> None:
    with pytest.raises(FailedPreconditionError, match="'driver_rides' has no schema id"):
        Applier(DEFINITIONS, {})
