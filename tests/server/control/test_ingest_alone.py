"""`headrace ingest`: the ingester apart from control, following its definitions."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from features import Column, definitions_from_source
from features.online.event_log import EventLog
from features.online.keys import CHECKPOINT
from features.online.payload import EventBatch
from features.online.store import OnlineStore
from server.control import ingest_role
from tests.server.control.conftest import LiveControl
from tests.server.processes.running import Running, eventually
from tests.server.served_bundles import DEFINITIONS
from tests.support.valkey import LiveValkey


async def push(url: str) -> str:
    store = OnlineStore(url)
    columns = {
        "user": Column(np.array(["ann"], object), None),
        "amount": Column(np.array([3.0]), None),
    }
    batch = EventBatch("payments", columns, np.array([1_380_600_000_000_000]))
    offset = await EventLog(store, definitions_from_source(DEFINITIONS)).push([batch])
    await store.close()
    return offset


def ingest(valkey: LiveValkey, control: LiveControl, folder: Path) -> Running:
    arguments = ["ingest", "--redis", valkey.url, "--control-url", control.client.url]
    arguments += ["--data-dir", str(folder)]
    return Running(sys.executable, "-P", "-m", "server.cli.main", *arguments)


def checkpoint(valkey: LiveValkey) -> str:
    return valkey.command("GET", CHECKPOINT.decode()).decode()


@pytest.mark.slow
async def test_it_ingests_by_controls_definitions_and_a_newer_one_ends_it(
    valkey: LiveValkey, own_control: LiveControl, tmp_path: Path
) -> None:
    offset = await push(valkey.url)
    own_control.client.apply_definitions(DEFINITIONS, "ada")
    with ingest(valkey, own_control, tmp_path) as first:
        first.line("ingester runs, epoch 1")
        eventually(lambda: offset in checkpoint(valkey), "the first event is ingested")
        own_control.stop()  # the last definitions stay
        first.line("the last definitions stay")
        own_control.start()
        with ingest(valkey, own_control, tmp_path) as second:
            second.line("ingester runs, epoch 2")
            # Until it has taken over, the first one may still be the one that ingests.
            eventually(lambda: ":2:" in checkpoint(valkey), "the second has taken over")
            later = await push(valkey.url)
            eventually(lambda: later in checkpoint(valkey), "the second event is ingested")
            assert second.end() == 0
        first.line("a newer ingester has taken over")
        assert first.wait() == 1


def test_the_role_says_what_it_waits_for() -> None:
    role = ingest_role.IngestRole("redis://127.0.0.1:1", Path("nowhere"))
    assert role.status() == {"state": "waits for definitions"}
