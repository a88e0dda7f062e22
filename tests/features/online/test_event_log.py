"""Push: acknowledged with an offset, refused as a whole, and bounded."""

from __future__ import annotations

import numpy as np
import pytest

from features import Column, definitions_from_source
from features.online.blocks import decode_payloads
from features.online.event_log import PUSH_EVENTS_MAX, EventLog
from features.online.keys import EVENTS, parse_offset
from features.online.payload import EventBatch
from features.online.store import OnlineStore
from headrace.errors import InvalidArgumentError, ResourceExhaustedError, UnavailableError
from tests.support.valkey import LiveValkey, free_port

DEFINITIONS = definitions_from_source(b"""
from features import EventSource, Field, Int64, RequestSource, String

rides = EventSource("rides", [Field("driver", Int64)])
shifts = EventSource("shifts", [Field("driver", Int64), Field("note", String)])
asked = RequestSource("asked", [Field("driver", Int64)])
""")


def rides(*drivers: int) -> EventBatch:
    return EventBatch(
        "rides", {"driver": Column(np.array(drivers, np.int64))}, np.arange(len(drivers))
    )


async def test_offsets_follow_one_another_and_the_batches_stand_in_the_log(
    valkey: LiveValkey,
) -> None:
    store = OnlineStore(valkey.url)
    log = EventLog(store, DEFINITIONS)
    offsets = [parse_offset(await log.push([rides(n), rides(n, n)]), "test") for n in range(20)]
    assert offsets == sorted(set(offsets))
    entries = await store.execute("XRANGE", EVENTS, "-", "+")
    assert [entry[0].decode() for entry in entries] == [str(offset) for offset in offsets]
    ((batch, places),) = decode_payloads([entries[7][1][1]])
    assert batch.columns["driver"].values.tolist() == [7, 7, 7]
    assert places.tolist() == [0, 1, 2]
    await store.close()


async def test_one_bad_batch_refuses_the_push(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    bad = EventBatch("ridez", {"driver": Column(np.array([1]))}, np.array([1]))
    with pytest.raises(InvalidArgumentError, match="unknown source 'ridez'"):
        await EventLog(store, DEFINITIONS).push([rides(1), bad])
    assert await store.execute("XLEN", EVENTS) == 0
    await store.close()


async def test_what_comes_with_the_request_is_not_pushed(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    batch = EventBatch("asked", {"driver": Column(np.array([1]))}, np.array([1]))
    with pytest.raises(InvalidArgumentError, match="unknown source 'asked'"):
        await EventLog(store, DEFINITIONS).push([batch])
    await store.close()


async def test_a_push_is_bounded(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    log = EventLog(store, DEFINITIONS)
    for batches in ([], [rides()]):
        with pytest.raises(InvalidArgumentError, match="expected 1 to 10000, got 0"):
            await log.push(batches)
    with pytest.raises(InvalidArgumentError, match="split it"):
        await log.push([rides(*range(PUSH_EVENTS_MAX + 1))])
    notes = np.array(["x" * 1_000_000] * 5, dtype=object)
    large = EventBatch(
        "shifts", {"driver": Column(np.arange(5)), "note": Column(notes)}, np.arange(5)
    )
    with pytest.raises(InvalidArgumentError, match="too large for one push"):
        await log.push([large])
    await store.close()


async def test_a_backlog_is_refused_rather_than_grown(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    log = EventLog(store, DEFINITIONS, backlog_bytes_max=2_000)
    pushed = 0

    async def push_on() -> None:
        nonlocal pushed
        while pushed < 100:
            await log.push([rides(1)])
            pushed += 1

    with pytest.raises(ResourceExhaustedError, match=r"too far behind.*2000 bytes"):
        await push_on()
    assert 5 < pushed < 15
    assert await store.execute("XLEN", EVENTS) == pushed
    await store.close()


async def test_a_store_that_is_gone_is_named() -> None:
    store = OnlineStore(f"redis://127.0.0.1:{free_port()}")
    with pytest.raises(UnavailableError, match="online store"):
        await EventLog(store, DEFINITIONS).push([rides(1)])
    await store.close()


@pytest.mark.parametrize("text", ["", "17", "1-", "a-b", "1-2-3", "-1-2", "9" * 30 + "-1"])
def test_what_is_no_offset_is_told(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="min_offset: not an offset"):
        parse_offset(text, "min_offset")
