"""Texts, ids, bytes, lists and embeddings: pushed, served, and the same from history."""

from __future__ import annotations

import struct
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features import Column, FeatureBatch, definitions_from_source
from features.offline import OfflineStore, get_historical_features
from features.online.payload import EventBatch
from headrace.errors import FailedPreconditionError, InvalidArgumentError
from tests.support.rides import HOUR_US, NOON_US, ingesting
from tests.support.valkey import LiveValkey

DEFINITIONS = definitions_from_source(
    b"""
import numpy as np

from features import (
    Aggregation, Array, Bytes, Column, Entity, EventSource, FeatureService, FeatureView, Field,
    Float32, Float64, Int64, RequestSource, StreamFeatureView, String, Timestamp, Uuid, Window,
    on_demand_feature_view,
)

reader = Entity("reader", ["reader_id"], key_types={"reader_id": Uuid})
page = Entity("page", ["digest"], key_types={"digest": Bytes})
visits = EventSource("visits", [
    Field("reader_id", Uuid), Field("digest", Bytes), Field("title", String),
    Field("tags", Array(String)), Field("embedding", Array(Float32)), Field("marks", Array(Int64)),
    Field("thumbnail", Bytes), Field("began", Timestamp), Field("seconds", Float64),
])
query = RequestSource("query", [Field("wanted", Array(Float32))])

last_visit = FeatureView("last_visit", reader, visits, [
    "digest", "title", "tags", "embedding", "marks", "began", "reader_id", "seconds",
], "12h")
page_seen = FeatureView("page_seen", page, visits, ["thumbnail", "title"])
reading = StreamFeatureView("reading", reader, visits, [
    Aggregation("seconds", ["sum"], [Window("1h", "1min")]),
    Aggregation("title", ["count"], [Window("1h", "1min")]),
    Aggregation("embedding", ["count"], [Window("1h", "1min")]),
])


@on_demand_feature_view(
    inputs=[query, last_visit["embedding"]],
    fields=[Field("nearness", Float64), Field("both", Array(Float32))],
)
def near(inputs):
    ours, theirs = inputs["last_visit:embedding"], inputs["wanted"]
    valid = ours.mask & theirs.mask
    both = np.empty(len(valid), object)
    for row in range(len(valid)):
        both[row] = np.concatenate([ours.values[row], theirs.values[row]]) if valid[row] else None
    dots = [float(a @ b) if ok else 0.0
            for a, b, ok in zip(ours.values, theirs.values, valid, strict=True)]
    return {"nearness": Column(np.array(dots), valid), "both": Column(both, valid)}


everything = FeatureService("everything", 1, [last_visit, page_seen, reading, near])
numbers = FeatureService("numbers", 1, [reading, near["nearness"]])
"""
)
READERS = [uuid.UUID(int=7), uuid.UUID(int=2**127 + 5)]
PAGES = [b"", b"\x00}:\xff", b"12"]
KINDS = {
    "reader_id": pa.string(),
    "digest": pa.binary(),
    "title": pa.string(),
    "tags": pa.list_(pa.string()),
    "embedding": pa.list_(pa.float32()),
    "marks": pa.list_(pa.int64()),
    "thumbnail": pa.binary(),
    "began": pa.int64(),
    "seconds": pa.float64(),
}


def column(values: list[Any]) -> Column:
    """Values as a caller has them, None where null."""
    held = np.empty(len(values), object)
    for row, value in enumerate(values):
        held[row] = value
    if all(isinstance(value, int | float | None) for value in values):
        kind = np.float64 if any(isinstance(value, float) for value in values) else np.int64
        held = np.array([value or 0 for value in values], kind)
    valid = np.array([value is not None for value in values])
    return Column(held, None if valid.all() else valid)


VISITS: list[tuple[int, dict[str, Any]]] = [
    (
        NOON_US,
        {
            "reader_id": str(READERS[0]).upper(),
            "digest": PAGES[1],
            "title": "Zürich",
            "tags": ["a", ""],
            "embedding": [0.1, 2.0, -0.0],
            "marks": [2**53 + 1],
            "thumbnail": bytes(range(256)) * 8,
            "began": NOON_US,
            "seconds": 1.5,
        },
    ),
    (NOON_US + 1, {**dict.fromkeys(KINDS), "reader_id": READERS[1], "digest": PAGES[0]}),
    (
        NOON_US + 2,
        {
            **dict.fromkeys(KINDS),
            "reader_id": READERS[1].bytes,
            "digest": PAGES[2],
            "tags": [],
            "embedding": [float("nan")],
            "seconds": 0.25,
        },
    ),
    (NOON_US + 3, {**dict.fromkeys(KINDS), "seconds": 9.0}),
]


def pushed() -> EventBatch:
    columns = {name: column([values[name] for _, values in VISITS]) for name in KINDS}
    return EventBatch("visits", columns, np.array([time for time, _ in VISITS]))


def history() -> pa.Table:
    def plain(value: Any) -> Any:
        if isinstance(value, bytes) and len(value) == 16:
            return str(uuid.UUID(bytes=value))
        return str(value) if isinstance(value, uuid.UUID) else value

    columns = {
        name: pa.array([plain(values[name]) for _, values in VISITS], kind)
        for name, kind in KINDS.items()
    }
    return pa.table({**columns, "event_time": pa.array([time for time, _ in VISITS])})


ASKED: list[tuple[Any, Any]] = [
    (str(READERS[0]), PAGES[1]),
    (READERS[1].hex, PAGES[0]),
    (str(READERS[1]), PAGES[2]),
    (str(uuid.UUID(int=1)), b"never seen"),
    (None, None),
]
WANTED = [np.array([1.0, 1.0, 1.0], np.float32)] + [np.array([2.0], np.float32)] * 3 + [None]


def inputs() -> dict[str, Column]:
    readers, pages = zip(*ASKED, strict=True)
    return {
        "reader_id": column(list(readers)),
        "digest": column(list(pages)),
        "wanted": column(WANTED),
    }


def spine(t_us: int) -> pa.Table:
    readers, pages = zip(*ASKED, strict=True)
    return pa.table(
        {
            "reader_id": pa.array(readers, pa.string()),
            "digest": pa.array(pages, pa.binary()),
            "wanted": pa.array(WANTED, pa.list_(pa.float32())),
            "event_time": pa.array([t_us] * len(ASKED)),
        }
    )


def values(batch: FeatureBatch, name: str) -> list[Any]:
    found = batch.column(name)
    return [
        None if not ok else value.tolist() if isinstance(value, np.ndarray) else value
        for value, ok in zip(found.values, found.mask, strict=True)
    ]


async def test_what_is_served_is_what_history_gives(valkey: LiveValkey, tmp_path: Path) -> None:
    store = OfflineStore(tmp_path)
    store.append("visits", history())
    service = DEFINITIONS.service("everything")
    async with ingesting(valkey.url, definitions=DEFINITIONS) as rig:
        offset = await rig.log.push([pushed()])
        for t_us in (NOON_US, NOON_US + 2, NOON_US + HOUR_US // 2, NOON_US + 13 * HOUR_US):
            served = await rig.read(inputs(), t_us, offset, service="everything")
            offline = get_historical_features(spine(t_us), service, store)
            assert served.pack(3) == offline.pack(3)
            assert served.pack_status() == offline.pack_status()
            back = FeatureBatch.unpack(service, served.pack(3), 3, served.pack_status())
            assert back.pack(3) == served.pack(3)
            for name in service.columns:
                assert repr(values(back, name)) == repr(values(served, name)), name
        served = await rig.read(inputs(), NOON_US + 2, offset, service="everything")
    assert values(served, "last_visit:title") == ["Zürich", None, None, None, None]
    assert values(served, "last_visit:tags") == [("a", ""), (), (), None, None]
    assert values(served, "last_visit:marks") == [[2**53 + 1], None, None, None, None]
    assert values(served, "last_visit:reader_id")[:2] == [str(each) for each in READERS]
    assert values(served, "last_visit:digest")[:2] == [PAGES[1], PAGES[2]]
    assert values(served, "last_visit:began") == [NOON_US, None, None, None, None]
    assert values(served, "page_seen:thumbnail")[0] == bytes(range(256)) * 8
    assert values(served, "page_seen:title") == ["Zürich", None, None, None, None]
    tenth = struct.unpack("<f", struct.pack("<f", 0.1))[0]
    assert values(served, "near:both")[0] == [tenth, 2.0, -0.0, 1.0, 1.0, 1.0]
    assert values(served, "near:nearness")[3:] == [None, None]
    assert values(served, "reading:title_count_1h") == [1, 0, 0, 0, None]
    assert served.status[:, service.column_index("page_seen:title")].tolist() == [0, 1, 1, 2, 2]


async def test_a_model_gets_numbers_only(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url, definitions=DEFINITIONS) as rig:
        offset = await rig.log.push([pushed()])
        served = await rig.read(inputs(), NOON_US + 9, offset, service="everything")
        with pytest.raises(FailedPreconditionError, match=r"'last_visit:digest' cannot be a model"):
            served.matrix()
        numbers = await rig.read(inputs(), NOON_US + 9, offset, service="numbers")
        assert numbers.matrix().shape == (5, 4)
        assert numbers.pack(1) == numbers.take(slice(0, 5)).pack(1)
        part = served.take(np.array([2, 0]))
        assert part.pack(3) == [served.pack(3)[2], served.pack(3)[0]]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("reader_id", "no id", r"entity 'reader': join key 'reader_id' does not hold uuid"),
        ("digest", "text", r"entity 'page': join key 'digest' does not hold bytes.*'text'"),
    ],
)
async def test_a_key_of_another_type_is_named(
    valkey: LiveValkey, name: str, value: object, says: str
) -> None:
    async with ingesting(valkey.url, definitions=DEFINITIONS) as rig:
        asked = inputs() | {name: column([value] * 5)}
        with pytest.raises(InvalidArgumentError, match=says):
            await rig.read(asked, NOON_US, service="everything")


def test_packed_rows_with_cells_that_lie_are_refused() -> None:
    service = DEFINITIONS.service("everything")
    columns = len(service.columns)
    good = service.start(1).finish({"wanted": column([WANTED[0]])}).pack(3)[0]
    assert FeatureBatch.unpack(service, [good], 3).pack(3) == [good]
    # Says that everything is there, with cells that begin where there is nothing.
    size = 8 + 8 + 8 * columns
    lie = good[:8] + bytes(8) + b"\x01\x00\x00\x00\x05\x00\x00\x00" * columns
    assert len(lie) == size
    with pytest.raises(InvalidArgumentError, match=r"packed row 0 is not one of service"):
        FeatureBatch.unpack(service, [lie], 3)
