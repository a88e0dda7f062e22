"""A view that is applied later is filled with what was pushed before, by the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from features import Column, Definitions, definitions_from_source
from features.offline import OfflineStore
from features.online.event_log import EventLog
from features.online.keys import CATALOG
from features.online.payload import EventBatch
from features.online.store import OnlineStore
from headrace.errors import FailedPreconditionError
from tests.server.cli.test_main import headrace
from tests.server.control.conftest import LiveControl
from tests.server.control.test_definitions_api import BESIDE
from tests.server.processes.running import eventually
from tests.server.served_bundles import DEFINITIONS
from tests.support.valkey import LiveValkey


@pytest.fixture
def control(valkey: LiveValkey, tmp_path: Path) -> Iterator[LiveControl]:
    live = LiveControl(tmp_path / "data", redis=valkey.url)
    yield live
    with live.process:
        pass


async def pushed(url: str, definitions: Definitions, count: int) -> None:
    store = OnlineStore(url)
    users = np.empty(count, object)
    users[:] = [f"user {i}" for i in range(count)]
    columns = {"user": Column(users), "amount": Column(np.arange(count) + 0.5)}
    times = 1_380_600_000_000_000 + np.arange(count)
    await EventLog(store, definitions).push([EventBatch("payments", columns, times)])
    await store.close()


@pytest.mark.slow
async def test_a_view_that_is_applied_later_is_filled_on_demand(
    valkey: LiveValkey, control: LiveControl
) -> None:
    client = control.client
    assert client.apply_definitions(DEFINITIONS, "ada")["backfill"] == {}
    await pushed(valkey.url, definitions_from_source(DEFINITIONS), 70)

    def events() -> int:
        return int(client.health()["ingester"]["archive"]["events"])

    eventually(lambda: events() == 70, "what was pushed is archived")
    history = OfflineStore(control.folder / "offline").read("payments")
    assert history["amount"].to_pylist() == [i + 0.5 for i in range(70)]

    later = client.apply_definitions(BESIDE, "ada")
    assert later["backfill"] == {
        "activity_2h": {"state": "waits", "cut": 70, "appended": 0, "sequence": 0}
    }
    view = definitions_from_source(BESIDE).stored_views["activity_2h"]
    store = OnlineStore(valkey.url)
    assert await store.execute("HEXISTS", CATALOG, view.hash) == 0
    with pytest.raises(FailedPreconditionError, match="'activity' does not wait for a backfill"):
        client.backfill(["activity"])
    done = headrace("features", "backfill", HEADRACE_CONTROL_URL=client.url)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "served: activity_2h")
    assert client.backfills() == {}
    assert await store.execute("HEXISTS", CATALOG, view.hash) == 1
    assert len(await store.execute("KEYS", "*:activity_2h:*")) == 70
    assert client.health()["ingester"]["counters"]["filled"] == 70
    again = headrace("features", "backfill", HEADRACE_CONTROL_URL=client.url)
    assert again.stdout == "no view waits for its history\n"
    await store.close()


def test_control_without_an_ingester_says_who_fills(tmp_path: Path) -> None:
    live = LiveControl(tmp_path / "data")
    with live.process:
        with pytest.raises(FailedPreconditionError, match=r"the ingester does not run here"):
            live.client.backfill([])
        assert live.client.backfills() == {}
