"""The status of what is last known, and how it is written: compiled steps, online and offline."""

from __future__ import annotations

from features.row import NO_TTL
from features.types import FeatureStatus
from headrace.compiled import borrowing_step

PRESENT, NULL = FeatureStatus.PRESENT, FeatureStatus.NULL
EXPIRED = FeatureStatus.EXPIRED


@borrowing_step
def status_at(event, t, ttl):  # type: ignore[no-untyped-def]
    """Return the status at t of a row with this event time; ttl: microseconds, or NO_TTL."""
    return EXPIRED if ttl != NO_TTL and t - event > ttl else PRESENT


@borrowing_step
def put_value(words, status, row, target, word, is_null):  # type: ignore[no-untyped-def]
    """Write a feature of a row that is present."""
    words[row, target] = 0 if is_null else word
    status[row, target] = NULL if is_null else PRESENT


@borrowing_step
def put_absent(words, status, row, targets, outcome):  # type: ignore[no-untyped-def]
    """Write all features of a row that is not present: `outcome` says why."""
    for target in targets:
        if target >= 0:
            words[row, target] = 0
            status[row, target] = outcome
