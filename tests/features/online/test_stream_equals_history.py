"""What is served equals what a training set would hold, bit for bit, statuses included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features import Column, FeatureBatch
from features.offline import OfflineStore, get_historical_features
from features.online.payload import EventBatch
from tests.support.random_events import CITIES, DRIVERS, Rng, random_push
from tests.support.rides import (
    DEFINITIONS,
    HOUR_US,
    MINUTE_US,
    NOON_US,
    asked,
    ingesting,
    people,
    shifts,
    shown,
)
from tests.support.valkey import LiveValkey

Row = tuple[int | None, str | None, float]


def arrow(column: Column, dtype: pa.DataType) -> pa.Array:
    return pa.array(column.values, type=dtype, mask=~column.mask, from_pandas=False)


def append(store: OfflineStore, batch: EventBatch) -> None:
    """Keep a pushed batch as history."""
    source = DEFINITIONS.sources[batch.source]
    types = {"int64": pa.int64(), "float64": pa.float64(), "float32": pa.float32()}
    types |= {"bool": pa.bool_(), "string": pa.string(), "timestamp": pa.int64()}
    table = pa.table(
        {
            name: arrow(batch.columns[name], types[dtype.value])
            for name, dtype in source.dtypes.items()
        }
    )
    table = table.append_column("event_time", pa.array(batch.event_times_us))
    if batch.created_times_us is not None:
        table = table.append_column("created_time", pa.array(batch.created_times_us))
    store.append(batch.source, table)


def random_rows(rng: Rng) -> list[Row]:
    return [
        (
            None if rng.random() < 0.05 else int(rng.integers(DRIVERS + 2)),
            CITIES[rng.integers(len(CITIES))],
            float(rng.integers(-1, 5)),
        )
        for _ in range(int(rng.integers(1, 6)))
    ]


def spine(rows: list[tuple[Row, int]]) -> pa.Table:
    inputs = asked(*(row for row, _ in rows))
    return pa.table(
        {
            "driver_id": arrow(inputs["driver_id"], pa.int64()),
            "city": arrow(inputs["city"], pa.string()),
            "distance": arrow(inputs["distance"], pa.float64()),
            "event_time": pa.array([t for _, t in rows], type=pa.int64()),
        }
    )


def differences(
    served: FeatureBatch, offline: FeatureBatch, rows: list[tuple[Row, int]]
) -> list[tuple[object, ...]]:
    """What a reader of a failure wants to see; the test itself compares bytes."""
    differ = (served.words != offline.words) | (served.status != offline.status)
    return [
        (rows[i], served.service.columns[k], shown_at(served, i, k), shown_at(offline, i, k))
        for i, k in np.argwhere(differ).tolist()
    ]


def shown_at(batch: FeatureBatch, row: int, column: int) -> object:
    return shown(batch, batch.service.columns[column])[row]


@pytest.mark.parametrize("seed", range(6))
async def test_served_rows_equal_the_training_set(
    valkey: LiveValkey, tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    history = OfflineStore(tmp_path)
    asked_rows: list[tuple[Row, int]] = []
    packed: list[bytes] = []
    statuses: list[bytes] = []
    batches = []
    now_us = NOON_US
    async with ingesting(valkey.url) as rig:
        for step in range(40):
            before_us = now_us + 1
            now_us += int(rng.choice([MINUTE_US, 7 * MINUTE_US, 90 * MINUTE_US]))
            if step == 30:
                now_us += 13 * HOUR_US
            push = random_push(rng, before_us, now_us)
            if step == 0:
                push += [people((NOON_US, 1, NOON_US)), shifts((NOON_US, 1, "van", 3, 1.5))]
            for batch in push:
                append(history, batch)
            offset = await rig.log.push(push)
            rows = random_rows(rng)
            # At the very time of the newest event, and off every hop.
            t_us = now_us if rng.random() < 0.5 else now_us + int(rng.integers(0, 50_000_000))
            batch = await rig.read(asked(*rows), t_us, offset)
            batches.append(batch)
            packed += batch.pack(7)
            statuses += batch.pack_status()
            asked_rows += [(row, t_us) for row in rows]
            now_us = max(now_us, t_us)
    service = DEFINITIONS.service("tips")
    offline = get_historical_features(spine(asked_rows), service, history)
    served = FeatureBatch(
        service,
        np.concatenate([batch.words for batch in batches]),
        np.concatenate([batch.status for batch in batches]),
    )
    assert differences(served, offline, asked_rows) == []
    assert packed == offline.pack(7)
    assert statuses == offline.pack_status()
    # It was no empty comparison: all that can be known and not known occurred.
    assert set(np.unique(served.status).tolist()) >= {0, 1, 2, 3}
