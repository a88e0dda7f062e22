"""The monitor's process, as control runs it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features import FeatureBatch
from headrace.errors import NotFoundError, UnavailableError
from headrace.ids import PredictionIds
from headrace.times import DAY_US
from monitor import LogWriter, log_batch
from server.control import monitor_role
from server.control.monitor_role import MonitorRole, live_version
from server.control.monitor_run import decode_rows
from tests.server.processes.running import TIMEOUT_S, alive
from tests.server.served_bundles import MODEL, make_served_bundle, service
from trainer.bundle import read_bundle
from trainer.registry import ArtifactStore

T0_US = 1_380_585_600_000_000  # 2013-10-01T00:00:00Z
IDS = PredictionIds(0, 1)


def batch(rows: int) -> FeatureBatch:
    words = np.stack([np.arange(rows), np.linspace(0, 1, rows).view(np.int64)], axis=1)
    return FeatureBatch(service(), words, np.zeros((rows, 2), np.uint8))


def log_day(folder: Path, day: int, rows: int, version: str) -> None:
    at_us = T0_US + day * DAY_US
    columns: dict[str, Any] = {
        "prediction_id": [IDS.take(at_us) for _ in range(rows)],
        "attempt": [0] * rows,
        "event_time": [at_us] * rows,
        "model": [MODEL] * rows,
        "version": [version] * rows,
        "arm": ["a"] * rows,
        "flags": [0] * rows,
        "status": [0] * rows,
        "features": batch(rows).pack(7),
        "outputs": [[0.25]] * rows,
    }
    LogWriter(folder / "log").write(log_batch(columns, rows))


@pytest.fixture
def version(tmp_path: Path) -> str:
    digest, _ = make_served_bundle(tmp_path / "bundle")
    ArtifactStore(tmp_path / "artifacts").put_bundle(read_bundle(tmp_path / "bundle"))
    return digest


@pytest.fixture
async def role(tmp_path: Path, version: str) -> AsyncIterator[MonitorRole]:
    arms = [{"arm": "a", "version": version, "role": "live", "weight": 1.0}]
    made = MonitorRole(tmp_path, lambda: {"plan": 1, "models": {MODEL: {"arms": arms}}})
    yield made
    await made.stop()


def process(role: MonitorRole) -> asyncio.subprocess.Process:
    assert role._process is not None
    return role._process


async def test_a_run_reads_the_log_and_the_profile(
    role: MonitorRole, tmp_path: Path, version: str
) -> None:
    log_day(tmp_path, 0, 3, version)
    result = await role.run(MODEL, date(2013, 10, 1))
    assert result["rows"] == 3
    assert result["days"][0]["prediction_mean"] == pytest.approx(0.25)
    assert role.status() == {"runs": 1, "failures": 0, "through": {MODEL: "2013-10-01"}}


async def test_days_that_have_closed_are_run_by_themselves_once(
    role: MonitorRole, tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_role, "_CHECK_INTERVAL_S", 0.01)
    for day in range(3):
        log_day(tmp_path, day, 2, version)
    follower = asyncio.create_task(role.follow())
    async with asyncio.timeout(TIMEOUT_S):
        while role.status()["runs"] == 0:  # noqa: ASYNC110 - a real process works meanwhile
            await asyncio.sleep(0.01)
    assert role.status()["through"] == {MODEL: "2013-10-02"}  # the third day still runs
    for _ in range(20):
        await asyncio.sleep(0.01)
    assert role.status()["runs"] == 1
    follower.cancel()


async def test_a_process_that_dies_is_an_error_and_the_next_run_gets_another(
    role: MonitorRole, tmp_path: Path, version: str
) -> None:
    log_day(tmp_path, 0, 3, version)
    await role.run(MODEL, date(2013, 10, 1))
    first = process(role).pid
    os.kill(first, signal.SIGSTOP)
    running = asyncio.create_task(role.run(MODEL, date(2013, 10, 1)))
    await asyncio.sleep(0)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(UnavailableError, match="died"):
        await running
    assert (await role.run(MODEL, date(2013, 10, 1)))["rows"] == 3
    assert process(role).pid != first


async def test_a_run_that_is_called_off_ends_its_process(
    role: MonitorRole, tmp_path: Path, version: str
) -> None:
    log_day(tmp_path, 0, 3, version)
    await role.run(MODEL, date(2013, 10, 1))
    first = process(role).pid
    os.kill(first, signal.SIGSTOP)
    running = asyncio.create_task(role.run(MODEL, date(2013, 10, 1)))
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not alive(first)
    # Its answer can never be taken for that of another run.
    assert (await role.run(MODEL, date(2013, 10, 1)))["rows"] == 3


async def test_a_model_under_no_plan(role: MonitorRole) -> None:
    with pytest.raises(NotFoundError, match="'other' is under no release plan"):
        await role.run("other", date(2013, 10, 1))


async def test_a_version_whose_bytes_are_gone_is_the_jobs_error(tmp_path: Path) -> None:
    arms = [{"arm": "a", "version": "sha256:" + "0" * 64, "role": "live"}]
    role = MonitorRole(tmp_path, lambda: {"plan": 1, "models": {MODEL: {"arms": arms}}})
    try:
        with pytest.raises(NotFoundError):
            await role.run(MODEL, date(2013, 10, 1))
        assert role.status()["failures"] == 1
    finally:
        await role.stop()


def test_rows_of_another_service_are_all_nan() -> None:
    mine = batch(2)
    rows = [*mine.pack(7), b"\x08\0\0\0\x01\0\0\0" + bytes(16), b"", *mine.pack(9)]
    matrix = decode_rows(service(), rows)
    assert matrix.dtype == np.float32
    assert np.array_equal(matrix[[0, 1]], mine.matrix())
    assert np.isnan(matrix[[2, 3]]).all()
    assert np.array_equal(matrix[[4, 5]], mine.matrix())


@pytest.mark.parametrize(
    ("arms", "live"),
    [
        ([], None),
        ([{"version": "c", "role": "canary"}, {"version": "l", "role": "live"}], "l"),
        ([{"version": "s", "role": "shadow"}], None),
    ],
)
def test_the_live_version(arms: list[dict[str, Any]], live: str | None) -> None:
    assert live_version({"plan": 1, "models": {"m": {"arms": arms}}}, "m") == live
    assert live_version({"plan": 1, "models": {}}, "m") is None
