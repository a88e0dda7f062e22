"""Batches: packing and unpacking, and what a model gets."""

from __future__ import annotations

import struct
import sys
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import (
    Array,
    Bool,
    Bytes,
    Column,
    CompiledService,
    Entity,
    EventSource,
    FeatureBatch,
    FeatureService,
    FeatureStatus,
    FeatureView,
    Field,
    Float32,
    Float64,
    Int64,
    String,
    Timestamp,
)
from headrace.errors import FailedPreconditionError, InvalidArgumentError

SOURCE = EventSource(
    "s",
    [
        Field("k", String),
        Field("n", Int64),
        Field("x", Float64),
        Field("y", Float32),
        Field("ok", Bool),
        *(Field(f"pad{i}", Int64) for i in range(66)),
    ],
)
ENTITY = Entity("e", ["k"])
NAMES = ["n", "x", "y", "ok"]
SERVICE = CompiledService(FeatureService("small", 1, [FeatureView("v", ENTITY, SOURCE, NAMES)]))
WIDE_VIEW = FeatureView("v", ENTITY, SOURCE, [f.name for f in SOURCE.fields if f.name != "k"])
WIDE = CompiledService(FeatureService("wide", 1, [WIDE_VIEW]))
int64s = st.integers(-(2**63), 2**63 - 1)


def bits(value: float) -> int:
    return int.from_bytes(struct.pack("<d", value), "little", signed=True)


@st.composite
def batches(draw: st.DrawFn, service: CompiledService) -> FeatureBatch:
    rows = draw(st.integers(0, 5))
    shape = (rows, len(service.columns))
    cells = rows * shape[1]
    words = np.array(draw(st.lists(int64s, min_size=cells, max_size=cells)), dtype=np.int64)
    status = np.array(draw(st.lists(st.integers(0, 4), min_size=cells, max_size=cells)), np.uint8)
    status = status.reshape(shape)
    return FeatureBatch(service, np.where(status == 0, words.reshape(shape), 0), status)


@given(st.data(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_packed_rows_come_back(data: st.DataObject, schema_id: int) -> None:
    service = data.draw(st.sampled_from([SERVICE, WIDE]))
    batch = data.draw(batches(service))
    rows = batch.pack(schema_id)
    back = FeatureBatch.unpack(service, rows, schema_id, batch.pack_status())
    assert back.words.tolist() == batch.words.tolist()
    assert back.status.tolist() == batch.status.tolist()
    assert back.pack(schema_id) == rows
    without = FeatureBatch.unpack(service, rows, schema_id)
    assert without.status.tolist() == (batch.status != 0).astype(int).tolist()
    assert np.array_equal(without.matrix(), batch.matrix(), equal_nan=True)


def test_the_bytes_are_as_the_contract_says() -> None:
    words = np.array([[-2, 0, bits(0.5), 1]], dtype=np.int64)
    batch = FeatureBatch(SERVICE, words, np.array([[0, 3, 0, 0]], dtype=np.uint8))
    assert batch.pack(7) == [
        struct.pack("<II", 7, 4) + b"\x02" + bytes(7) + struct.pack("<qqdq", -2, 0, 0.5, 1)
    ]
    assert batch.pack_status() == [bytes([0x30, 0x00])]
    wide = FeatureBatch(WIDE, np.zeros((1, 70), np.int64), np.ones((1, 70), np.uint8))
    assert wide.pack(7)[0][8:24] == bytes([255] * 8 + [0x3F]) + bytes(7)


def test_a_batch_that_is_a_part_of_another_array_packs_the_same() -> None:
    words = np.arange(12, dtype=np.int64).reshape(2, 6)
    status = np.zeros((2, 6), dtype=np.uint8)
    part = FeatureBatch(SERVICE, words[:, :4], status[:, :4])
    whole = FeatureBatch(SERVICE, words[:, :4].copy(), status[:, :4].copy())
    assert part.pack() == whole.pack()
    assert part.pack_status() == whole.pack_status()
    assert part.matrix().tolist() == whole.matrix().tolist()


def test_a_model_gets_float32_rounded_once_and_nan_for_what_is_not_there() -> None:
    # Rounded to float64 on the way, this integer would be rounded twice and come out one step low.
    tricky = (1 << 60) + (1 << 36) + 1
    values = [[tricky, bits(1e300), bits(0.1), 1], [3, 0, 0, 0], [1, bits(float("nan")), 0, 0]]
    status = [[0, 0, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0]]
    batch = FeatureBatch(SERVICE, np.array(values), np.array(status, dtype=np.uint8))
    matrix = batch.matrix()
    assert matrix.dtype == np.float32
    assert matrix.flags.c_contiguous
    assert int(matrix[0, 0]) == (1 << 60) + (1 << 37)
    assert matrix[0, 1:].tolist() == [float("inf"), float(np.float32(0.1)), 1.0]
    assert np.isnan(matrix[1]).all()
    assert np.isnan(matrix[2]).tolist() == [False, True, False, False]


def test_a_column_has_its_own_type() -> None:
    words = np.array([[-2, bits(0.25), bits(0.5), 1], [0, 0, 0, 0]])
    status = np.array([[0, 0, 0, 0], [0, 1, 2, 0]], dtype=np.uint8)
    batch = FeatureBatch(SERVICE, words, status)
    assert len(batch) == 2
    assert batch.column("v:x").values.tolist() == [0.25, 0.0]
    assert batch.column("v:x").mask.tolist() == [True, False]
    assert batch.column("v:ok").values.tolist() == [True, False]
    with pytest.raises(InvalidArgumentError, match="service 'small': unknown feature 'v:z'"):
        batch.column("v:z")


ROW = FeatureBatch(SERVICE, np.zeros((1, 4), np.int64), np.zeros((1, 4), np.uint8)).pack(7)[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"", "got 0 bytes"),
        (ROW[:5], "got 5 bytes"),
        (ROW[:-1], "expected 48 bytes.*got 47 bytes, schema id 7, 4 features"),
        (ROW + b"\0", "got 49 bytes"),
        (struct.pack("<I", 8) + ROW[4:], "schema id 7.*got 48 bytes, schema id 8"),
        (ROW[:4] + struct.pack("<I", 5) + ROW[8:], "5 features"),
    ],
)
def test_a_row_that_is_not_the_service_s_is_named(row: bytes, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"packed row 1 is not one of.*{message}"):
        FeatureBatch.unpack(SERVICE, [ROW, row], 7)


def test_a_status_of_another_length_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match=r"packed status 0 .*expected 2 bytes, got 1"):
        FeatureBatch.unpack(SERVICE, [ROW], 7, [b"\0"])


def test_no_rows_are_no_bytes() -> None:
    empty = FeatureBatch.unpack(SERVICE, [], 7, [])
    assert (empty.pack(), empty.pack_status()) == ([], [])
    assert empty.matrix().shape == (0, 4)
    assert FeatureStatus.PRESENT == 0


MIXED_SOURCE = EventSource(
    "mixed",
    [
        Field("k", String),
        Field("n", Int64),
        Field("at", Timestamp),
        Field("y", Float32),
        Field("text", String),
        Field("raw", Bytes),
        Field("embedding", Array(Float32)),
        Field("words", Array(String)),
    ],
)
MIXED_NAMES = [field.name for field in MIXED_SOURCE.fields[1:]]
MIXED = CompiledService(
    FeatureService("mixed", 1, [FeatureView("v", ENTITY, MIXED_SOURCE, MIXED_NAMES)])
)


def mixed(*present: bool) -> FeatureBatch:
    """Rows that hold everything, or nothing."""
    status = np.array([[0 if there else 2] * 7 for there in present], np.uint8).reshape(-1, 7)
    values = ["ü", b"\0", np.array([0.5, -0.0], np.float32), ("a", "")]
    variables = {}
    for name, value in zip(MIXED_NAMES[3:], values, strict=True):
        held = np.full(len(present), None, object)
        for row in np.flatnonzero(present).tolist():
            held[row] = value
        variables[f"v:{name}"] = Column(held, np.array(present, np.bool_))
    words = np.where(status == 0, [[2**53 + 1, 7, bits(0.5), 0, 0, 0, 0]], 0)
    return FeatureBatch(MIXED, words, status, variables)


@pytest.mark.parametrize("present", [(), (True,), (False,), (True, False, True)])
def test_values_of_any_length_come_back(present: tuple[bool, ...]) -> None:
    batch = mixed(*present)
    rows = batch.pack(3)
    back = FeatureBatch.unpack(MIXED, rows, 3, batch.pack_status())
    assert back.pack(3) == rows
    assert back.status.tolist() == batch.status.tolist()
    for name in ("v:text", "v:raw", "v:words"):
        assert back.column(name).values.tolist() == batch.column(name).values.tolist()
    assert repr(back.column("v:embedding")) == repr(batch.column("v:embedding"))
    assert [row for part in (0, 1) for row in batch.take(slice(part, None, 2)).pack(3)] == [
        *rows[0::2],
        *rows[1::2],
    ]


def test_cells_that_lie_are_named() -> None:
    (row,) = mixed(True).pack(3)
    place = len(row) - len("ü".encode()) - 1 - 8 - 9 - 4 * 8
    for cell in ((0, 1), (0, 1000), (1 << 31, 1), (0, 1 << 31)):
        lie = row[:place] + struct.pack("<II", *cell) + row[place + 8 :]
        with pytest.raises(InvalidArgumentError, match=r"string in 'v:text', 7 features"):
            FeatureBatch.unpack(MIXED, [lie], 3)
    with pytest.raises(InvalidArgumentError, match="schema id 4"):
        FeatureBatch.unpack(MIXED, [row], 4)


def test_a_model_takes_numbers_only() -> None:
    with pytest.raises(FailedPreconditionError, match=r"'v:at' cannot be a model's input.*timesta"):
        mixed(True).matrix()


def test_arrow_has_each_type_nulls_and_reasons() -> None:
    table = mixed(True, False).to_arrow(statuses=True)
    moment = datetime.fromtimestamp(7e-6, UTC)
    assert table.to_pylist() == [
        {
            "v:n": 2**53 + 1, "v:n:status": "present", "v:at": moment, "v:at:status": "present",
            "v:y": 0.5, "v:y:status": "present", "v:text": "ü", "v:text:status": "present",
            "v:raw": b"\0", "v:raw:status": "present", "v:embedding": [0.5, -0.0],
            "v:embedding:status": "present", "v:words": ["a", ""], "v:words:status": "present",
        },
        {
            name: "not_found" if name.endswith(":status") else None
            for name in table.column_names
        },
    ]  # fmt: skip
    assert mixed(True).to_arrow().column_names == MIXED.columns


def test_pandas_keeps_integers_with_nulls(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = mixed(True, False).to_pandas()
    assert str(frame["v:n"].dtype) == "int64[pyarrow]"
    assert frame["v:n"].tolist()[0] == 2**53 + 1
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(FailedPreconditionError, match=r"pandas is not installed.*to_arrow"):
        mixed(True).to_pandas()
