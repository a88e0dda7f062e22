"""The subscription to the ingester's progress: it wakes, it ends, it notices a silent peer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from features.online import progress as progress_module
from features.online import resp
from features.online.keys import PROGRESS_CHANNEL, Offset
from features.online.resp import Connection
from features.online.store import OnlineStore
from tests.support.valkey import LiveValkey


async def live(store: OnlineStore) -> None:
    store.progress.start()
    async with asyncio.timeout(5):
        while not store.progress.live:
            await store.execute("PING")


async def test_a_message_wakes_whom_it_concerns(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    await live(store)
    near = asyncio.create_task(store.progress.wait(Offset(5, 0), 5))
    far = asyncio.create_task(store.progress.wait(Offset(9, 0), 5))
    await store.execute("PUBLISH", PROGRESS_CHANNEL, "5-1")
    await near
    assert store.progress.latest == Offset(5, 1)
    assert not far.done()
    # What was said already costs no wait.
    await store.progress.wait(Offset(5, 1), 5)
    await store.close()
    await far
    assert store.progress.waiting == 0


async def test_a_wait_ends_by_itself(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    await live(store)
    started_s = time.monotonic()
    await store.progress.wait(Offset(5, 0), 0.05)
    assert 0.04 < time.monotonic() - started_s < 1
    await store.close()


async def test_a_peer_that_fell_silent_is_noticed(
    own_valkey: LiveValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "PING_EVERY_S", 0.01)
    monkeypatch.setattr(progress_module, "CALL_TIMEOUT_S", 0.1)
    store = OnlineStore(own_valkey.url)
    await live(store)
    await store.progress.wait(Offset(5, 0), 0.05)
    assert store.progress.live  # it answered some pings
    own_valkey.pause()
    async with asyncio.timeout(5):
        while store.progress.live:
            await store.progress.wait(Offset(5, 0), 0.01)
    own_valkey.resume()
    await live(store)
    await store.close()


async def test_an_end_in_the_turn_of_a_loss_is_an_end(
    valkey: LiveValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    async def open_connection(*given: Any, **named: Any) -> Connection:
        opened.append(await resp.open_connection(*given, **named))
        return opened[-1]

    monkeypatch.setattr(progress_module, "open_connection", open_connection)
    store = OnlineStore(valkey.url)
    await live(store)
    async with asyncio.timeout(5):
        opened[0].close()
        await store.close()
    assert len(opened) == 1
