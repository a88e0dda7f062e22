"""Frames between worker and collector: either may be of the release before."""

from __future__ import annotations

import asyncio

import msgspec
import pyarrow as pa
import pytest

from monitor import LOG_SCHEMA, log_batch
from monitor.schema import as_received, to_send
from server import frames
from tests.contracts.golden import CHANGED, FOLDER, read_json
from tests.contracts.test_log import ID, NOON, ROW

GOLDEN = {name: bytes.fromhex(text) for name, text in read_json("frames.json").items()}
NOON_US = int(NOON.timestamp()) * 1_000_000
MESSAGES = {
    "truth": (2, [3, [[ID, "late", 1.0, NOON_US, "replay"]]]),
    "truth ok": (3, [3, 1]),
    "truth error": (4, [3, "disk full"]),  # of the releases before the code; still read
    "truth error with its code": (4, [3, "unavailable", "disk full"]),
}


async def read(data: bytes) -> tuple[int, bytes]:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    frame = await frames.read_frame(reader)
    assert reader.at_eof()
    return frame


def test_the_kinds() -> None:
    kinds = (frames.LOG, frames.TRUTH, frames.TRUTH_OK, frames.TRUTH_ERROR)
    assert kinds == (1, 2, 3, 4), CHANGED


@pytest.mark.parametrize("name", MESSAGES)
async def test_truth_and_its_answers(name: str) -> None:
    kind, message = MESSAGES[name]
    assert frames.frame(kind, msgspec.msgpack.encode(message)) == GOLDEN[name], CHANGED
    found, payload = await read(GOLDEN[name])
    assert (found, msgspec.msgpack.decode(payload)) == (kind, message), CHANGED


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("log_frame.bin", ROW),
        # Of the release that added attributions; without any, its frames are as those before.
        ("log_frame_explained.bin", ROW | {"attributions": [0.5, -1], "attribution_base": [0.25]}),
    ],
)
async def test_log_rows(name: str, row: dict[str, object]) -> None:
    kind, payload = await read((FOLDER / name).read_bytes())
    assert kind == frames.LOG, CHANGED
    with pa.ipc.open_stream(payload) as stream:
        batches = list(stream)
        metadata = stream.schema.metadata
    assert metadata == {b"worker": b"5", b"first_sequence": b"40", b"rows": b"1"}, CHANGED
    table = pa.Table.from_batches([as_received(batch) for batch in batches])
    assert table.schema.equals(LOG_SCHEMA), CHANGED
    assert table.to_pylist() == [row], CHANGED


def test_a_frame_without_attributions_is_as_the_first_releases_were() -> None:
    payload = (FOLDER / "log_frame.bin").read_bytes()[frames.HEADER_BYTES :]
    with pa.ipc.open_stream(payload) as stream:
        first = stream.schema
    batch = log_batch({name: [value] for name, value in ROW.items()}, 1)
    assert to_send(batch).schema.equals(first), CHANGED
