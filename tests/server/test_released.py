"""Tensors for released models: what the log says of a call that nobody waited for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from headrace.ids import PredictionIds
from server.execution.threads import RunThreads
from server.models.bundles import ReleasedModels
from server.models.versions import BundleSource, VersionLoader
from server.predict import Clocks
from server.protocol.oip import InferCall
from server.protocol.tensors import Tensor
from server.released import ReleasedTensors
from server.tap import Tap
from server.wire.handlers import Context
from tests.server.serving import plan, write_plain_version
from tests.server.test_tap import Collector


@pytest.fixture
def executor() -> Iterator[RunThreads]:
    with RunThreads(1, 1) as executor:
        yield executor


@pytest.fixture
async def collector(tmp_path: Path) -> AsyncIterator[Collector]:
    collector = Collector(str(tmp_path / "c.sock"))
    await collector.start()
    yield collector
    await collector.stop()


@pytest.mark.parametrize(("deadline_s", "status"), [(None, 1), (60.0, 1), (-1.0, 4)])
async def test_a_cancelled_call_is_logged_as_such(
    tmp_path: Path,
    executor: RunThreads,
    collector: Collector,
    deadline_s: float | None,
    status: int,
) -> None:
    digest = write_plain_version(tmp_path)
    models = ReleasedModels(
        VersionLoader(BundleSource(f"file://{tmp_path}", tmp_path), executor), executor
    )
    assert (await models.apply(plan(1, plain=[(digest, "live", 1.0)])))["applied"]
    tap = Tap(collector.socket, worker=0)
    tensors = ReleasedTensors(models, tap, Clocks(PredictionIds(0, 1)))
    leave = threading.Event()
    executor.submit(leave.wait, 10)  # the model's thread is taken
    call = InferCall("plain", "", "r1", [Tensor("x", "FP32", np.zeros((3, 1), np.float32))])
    deadline_ns = None if deadline_s is None else time.monotonic_ns() + int(deadline_s * 1e9)
    running = asyncio.ensure_future(tensors.infer(call, Context(deadline_ns=deadline_ns)))
    await asyncio.sleep(0)  # it begins: the call waits for its batch, that is formed a turn later
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    leave.set()
    tap.start()
    rows = await collector.wait_rows(3)
    assert [(row["status"], row["outputs"]) for row in rows] == [(status, None)] * 3
    await tap.close(5)
