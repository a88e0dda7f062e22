"""Entries decoded many at once: each that cannot be is a dead letter and harms no other."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.ingest.entries import Entry, cut, decode, read_entries
from features.online.blocks import encode_payload
from features.online.payload import EventBatch, pushed_sources
from features.types import Column
from tests.support.rides import DEFINITIONS, NOON_US, rides, shifts

SOURCES = pushed_sources(DEFINITIONS)
BAD: dict[str, bytes | None] = {
    "no field 'b'": None,
    "cannot be decoded": b"x",
    "another format": bytes(64),
    "unknown source": encode_payload([EventBatch("ridez", {}, np.array([1]))]),
    "is missing": encode_payload([EventBatch("rides", {}, np.array([1]))]),
    "no time": encode_payload([rides((1 << 62, 1, "Ulm", 1, 1.0))]),
    "unknown field": encode_payload(
        [
            rides((1, 1, "Ulm", 1, 1.0)),
            EventBatch("rides", {"nite": Column(np.array([1]))}, np.array([1])),
        ]
    ),
}


def good(number: int, events: int) -> bytes:
    """Rides, and a shift where the number is odd; the minutes and the seats tell them apart."""
    batch = rides(*((NOON_US, 1, "Ulm", 100 * number + i, 1.0) for i in range(events)))
    more = [shifts((NOON_US, 1, "van", 100 * number + events, 1.0))] if number % 2 else []
    return encode_payload([batch, *more])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 9) | st.sampled_from(sorted(BAD)), min_size=1, max_size=40))
def test_what_is_bad_is_named_and_the_rest_is_there(drawn: list[int | str]) -> None:
    entries, dead, expected = [], [], []
    for number, what in enumerate(drawn):
        offset = b"%d-0" % (number + 1)
        if isinstance(what, str):
            entries.append(Entry(offset, BAD[what]))
            dead.append((offset, what))
        else:
            entries.append(Entry(offset, good(number, what)))
            expected += [100 * number + i for i in range(what + number % 2)]
    group = decode(entries, SOURCES)
    assert [letter.entry.offset for letter in group.dead] == [offset for offset, _ in dead]
    for letter, (_, reason) in zip(group.dead, dead, strict=True):
        assert reason in letter.reason
        assert letter.entry.payload == BAD[reason]
    placed = {}
    for batch, places in group.arrived:
        name = "minutes" if batch.source == "rides" else "seats"
        placed.update(zip(places.tolist(), batch.columns[name].values.tolist(), strict=True))
    assert [placed[i] for i in range(group.events)] == expected
    assert (group.entries, str(group.offset)) == (len(drawn), f"{len(drawn)}-0")
    # Cut anywhere, nothing is lost and each list but the last has what it should have.
    lists = list(cut(entries, 20))
    assert [entry for part in lists for entry in part] == entries
    events = [decode(part, SOURCES).events for part in lists]
    assert sum(events) == group.events


def test_lists_end_with_the_entry_that_fills_them() -> None:
    entries = [Entry(b"%d-0" % i, good(2, events)) for i, events in enumerate([5, 5, 1, 30, 2])]
    assert [len(part) for part in cut(entries, 10)] == [2, 2, 1]


def test_the_field_of_the_payload_is_found_among_others() -> None:
    found = [[b"1-0", [b"b", b"x"]], [b"2-0", [b"a", b"y", b"b", b"z"]], [b"3-0", [b"c", b"q"]]]
    assert [entry.payload for entry in read_entries(found)] == [b"x", b"z", None]
