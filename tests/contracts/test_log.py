"""The inference log and the truth: their schemas, and files that any later Headrace must read."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from monitor import LOG_SCHEMA, TRUTH_SCHEMA, read_log, read_truth, schema
from tests.contracts.golden import CHANGED, FOLDER, joined, read_json

GOLDEN = read_json("log_schema.json")
NOON = datetime(2013, 3, 15, 12, tzinfo=UTC)
ID = bytes.fromhex("013d6debc200700080050001 00000007".replace(" ", ""))
ROW: dict[str, Any] = {
    "prediction_id": ID, "attempt": 1, "event_time": NOON,
    "logged_time": NOON + timedelta(microseconds=5), "model": "delay",
    "version": "sha256:" + "a" * 64, "service": "score@sha256:" + "c" * 64, "plan": 17,
    "policy": "weighted", "arm": "b", "propensity": 0.1, "pmf": [0.9, 0.1], "flags": 33,
    "key_hash": 2**64 - 1, "context_hash": 1, "sampling_probability": 1.0,
    "features": joined(read_json("rows.json")["service row"]), "schema_id": 77,
    "feature_status": joined(read_json("rows.json")["service status"]), "inputs": b"in",
    "outputs": [0.25], "outputs_raw": b"raw", "decision": "late", "queue_us": 1,
    "features_us": 2, "compute_us": 3, "total_us": 6, "status": 0, "worker": 5,
    "trace_id": bytes(range(16)), "attributions": None, "attribution_base": None,
}  # fmt: skip


@pytest.mark.parametrize(("name", "found"), [("log", LOG_SCHEMA), ("truth", TRUTH_SCHEMA)])
def test_names_and_types_in_order(name: str, found: pa.Schema) -> None:
    assert [(field.name, str(field.type)) for field in found] == list(GOLDEN[name].items()), CHANGED


def test_the_bits_of_flags() -> None:
    assert {name: getattr(schema, name.upper()) for name in GOLDEN["flags"]} == GOLDEN["flags"], (
        CHANGED
    )


def test_a_log_file_of_the_first_release_is_read() -> None:
    table = read_log(FOLDER / "log", "delay")
    assert table.schema.names == LOG_SCHEMA.names, CHANGED
    assert table.to_pylist() == [ROW], CHANGED


def test_a_truth_file_of_the_first_release_is_read(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "wal", tmp_path / "wal")
    read = read_truth(tmp_path / "wal")
    assert read.damaged_bytes == 0, CHANGED
    assert [(row["prediction_id"], row["value"]) for row in read.history.to_pylist()] == [
        (ID, 0.0), (ID, 1.0), (None, 1.0)
    ], CHANGED  # fmt: skip
    key = bytes.fromhex("01060000004e3134323238")
    by_entity, by_id = sorted(read.latest.to_pylist(), key=lambda row: row["prediction_id"] or b"")
    assert by_id == {
        "prediction_id": ID, "entity_key": None, "name": "late", "value": 1.0, "event_time": NOON,
        "created_time": NOON + timedelta(microseconds=2), "source": "replay",
    }, CHANGED  # fmt: skip
    assert (by_entity["entity_key"], by_entity["source"]) == (key, "batch"), CHANGED
