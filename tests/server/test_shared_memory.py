"""Shared memory with several workers: what one was told, the others know, and a later one too."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory as Segment
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.onnx_models import identity_model, put
from tests.server.processes.running import eventually
from tests.server.test_serve import FREE_PORTS, call, children, ready, serve

BODY: dict[str, Any] = {
    "inputs": [
        {"name": "TEXT", "datatype": "INT64", "shape": [1, 4],
         "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 32}}
    ],
}  # fmt: skip


@pytest.fixture
def segment() -> Iterator[Segment]:
    segment = Segment(f"test-{secrets.token_hex(8)}", create=True, size=64)
    yield segment
    segment.close()
    segment.unlink()


@pytest.mark.slow
def test_a_registration_holds_in_every_worker_and_in_one_that_comes_later(
    tmp_path: Path, segment: Segment
) -> None:
    put(tmp_path / "models", "same", identity_model(7))
    segment.buf[:32] = np.arange(4).tobytes()
    arguments = ("--model-repository", str(tmp_path / "models"), "--workers", "2")
    data = tmp_path / "data"
    with serve(*arguments, *FREE_PORTS, "--data-dir", str(data), "--shared-memory") as process:
        http = ready(process)["http"]
        path = "/v2/systemsharedmemory/region/r/register"
        assert call(http, "POST", path, {"key": segment.name, "byte_size": 64}) == (200, {})

        def all_answer() -> None:
            for _ in range(20):  # each is a new connection: both workers are met
                status, reply = call(http, "POST", "/v2/models/same/infer", BODY)
                assert (status, reply["outputs"][0]["data"]) == (200, [0, 1, 2, 3])

        all_answer()
        before = children(data)["worker-0"]
        os.kill(before, signal.SIGKILL)
        eventually(lambda: children(data).get("worker-0", before) != before, "it is back")
        eventually(lambda: call(http, "GET", "/v2/models/same/ready")[0] == 200, "it serves")
        all_answer()
        assert call(http, "POST", "/v2/systemsharedmemory/unregister") == (200, {})
        for _ in range(20):
            status, reply = call(http, "POST", "/v2/models/same/infer", BODY)
            assert status == 404
            assert "Unable to find shared memory region: 'r'" in reply["error"]


@pytest.mark.slow
def test_a_new_start_knows_no_region(tmp_path: Path, segment: Segment) -> None:
    for _ in range(2):
        with serve(*FREE_PORTS, "--data-dir", str(tmp_path), "--shared-memory") as process:
            http = ready(process)["http"]
            assert call(http, "GET", "/v2/systemsharedmemory/status") == (200, [])
            path = "/v2/systemsharedmemory/region/r/register"
            assert call(http, "POST", path, {"key": segment.name, "byte_size": 64}) == (200, {})
            assert process.end() == 0
