"""Control runs the ingester for the definitions that were applied."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from features import Column, definitions_from_source
from features.online.event_log import EventLog
from features.online.keys import CATALOG
from features.online.payload import EventBatch
from features.online.store import OnlineStore
from headrace.errors import InvalidArgumentError
from server.control.ingest_role import IngestRole, stored_schema_ids
from tests.server.control.conftest import LiveControl
from tests.server.processes.running import TIMEOUT_S, eventually
from tests.server.served_bundles import DEFINITIONS
from tests.support.valkey import LiveValkey


@pytest.fixture
def control(valkey: LiveValkey, tmp_path: Path) -> Iterator[LiveControl]:
    live = LiveControl(tmp_path / "data", redis=valkey.url)
    yield live
    with live.process:
        pass


def state(control: LiveControl) -> str:
    return str(control.client.health()["ingester"]["state"])


def test_applied_definitions_start_the_ingester_and_a_restart_goes_on(control: LiveControl) -> None:
    assert state(control) == "waits for definitions"
    assert control.client.definitions() is None
    applied = control.client.apply_definitions(DEFINITIONS, "ada")
    assert applied["views"]["activity"]["features"] == {
        "amount_count_1h": "INT64",
        "amount_mean_1h": "FLOAT64",
    }
    assert applied["services"]["score"]["columns"] == [
        "activity:amount_count_1h",
        "activity:amount_mean_1h",
    ]
    eventually(lambda: state(control) == "running", "the ingester runs")
    again = control.client.apply_definitions(DEFINITIONS, "ada")
    assert again["ids"] == applied["ids"]
    control.stop()
    control.start()
    eventually(lambda: state(control) == "running", "the ingester runs again")
    shown = control.client.definitions()
    assert shown is not None
    assert shown["source"].encode() == DEFINITIONS
    assert shown["ids"] == applied["ids"]


def test_a_mistake_in_definitions_leaves_the_last_ones(control: LiveControl) -> None:
    control.client.apply_definitions(DEFINITIONS, "ada")
    with pytest.raises(InvalidArgumentError, match="line 1"):
        control.client.apply_definitions(b"from features import Nothing\n", "ada")
    shown = control.client.definitions()
    assert shown is not None
    assert shown["source"].encode() == DEFINITIONS


async def test_a_newer_ingester_takes_over_and_the_older_one_stops(
    valkey: LiveValkey, tmp_path: Path
) -> None:
    definitions = definitions_from_source(DEFINITIONS)
    ids = {view.hash: 7 for view in definitions.stored_views.values()}
    schema_ids = stored_schema_ids(definitions, ids)
    assert schema_ids == {"activity": 7}
    older, newer = (IngestRole(valkey.url, tmp_path) for _ in range(2))
    store = OnlineStore(valkey.url)
    log = EventLog(store, definitions)
    try:
        await older.apply(definitions, schema_ids)
        await wait_until(lambda: older.status().get("offset") is not None)
        await newer.apply(definitions, schema_ids)
        await wait_until(lambda: newer.status().get("offset") is not None)
        catalog = await store.execute("HGETALL", CATALOG)
        assert catalog == [definitions.views["activity"].hash.encode(), b"7"]
        offset = await log.push([payments()])
        await wait_until(lambda: newer.status().get("offset") == offset)
        await wait_until(lambda: older.status()["state"] == "failed")
        assert "newer ingester" in older.status()["error"]
        assert newer.status()["counters"]["events"] == 1
    finally:
        await asyncio.gather(older.stop(), newer.stop())
        await store.close()
        await asyncio.sleep(0)  # closed transports end in the next turn of the loop


async def test_it_waits_for_a_store_that_is_gone(tmp_path: Path) -> None:
    definitions = definitions_from_source(DEFINITIONS)
    role = IngestRole(f"unix://{tmp_path}/nobody.sock", tmp_path)
    await role.apply(definitions, {"activity": 1})
    await wait_until(lambda: role.status()["state"] == "waits for the store")
    await role.stop()
    assert role.status()["state"] == "stopped"


def payments() -> EventBatch:
    columns = {
        "user": Column(np.array(["ann"], object), None),
        "amount": Column(np.array([3.0]), None),
    }
    return EventBatch("payments", columns, np.array([1_380_600_000_000_000]))


async def wait_until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - the state of another task
            await asyncio.sleep(0.01)
