"""Packed rows: what is logged, what the store keeps, byte by byte."""

from __future__ import annotations

import numpy as np
import pytest

from features import Column, FeatureBatch, FeatureView, definitions_from_source
from features.row import RowCodec, merge_pile, split_pile
from tests.contracts.golden import CHANGED, FOLDER, joined, read_json

GOLDEN = {name: joined(parts) for name, parts in read_json("rows.json").items()}
DEFINITIONS = definitions_from_source((FOLDER / "bundle" / "definitions.py").read_bytes())
NOON_US = 1_363_348_800_000_000
MINUTE_US = 60_000_000

SERVICE = DEFINITIONS.service("score")
WORDS = np.array([3, 0, 0, 0, 0, 0, 1], np.int64)
WORDS.view(np.float64)[[1, 2, 4]] = 37.5, 12.5, -0.0
STATUS = np.array([0, 0, 0, 1, 0, 3, 0], np.uint8)

VIEW = DEFINITIONS.views["last_payment"]
assert isinstance(VIEW, FeatureView)
CODEC = RowCodec.of_view(VIEW, 11)
PAYMENTS = {
    "amount": Column(np.array([12.5, 0.0]), np.array([True, False])),
    "country": Column(np.array(["Perú", ""], object), np.array([True, False])),
    "risk": Column(np.array([0.25, -1.0])),
}
TIMES = (
    np.array([NOON_US, NOON_US - MINUTE_US]),
    np.array([NOON_US + 1, NOON_US - MINUTE_US]),
    np.array([7, 6]),
)
ROWS = [GOLDEN["last-known row"], GOLDEN["older row"]]


def test_a_row_of_a_service_is_packed_so() -> None:
    batch = FeatureBatch(SERVICE, WORDS[None], STATUS[None])
    assert batch.pack(77) == [GOLDEN["service row"]], CHANGED
    assert batch.pack_status() == [GOLDEN["service status"]], CHANGED


def test_a_row_of_a_service_is_read_so() -> None:
    batch = FeatureBatch.unpack(SERVICE, [GOLDEN["service row"]], 77, [GOLDEN["service status"]])
    assert batch.words.tolist() == [WORDS.tolist()], CHANGED
    assert batch.status.tolist() == [STATUS.tolist()], CHANGED
    matrix = np.array([[3, 37.5, 12.5, np.nan, -0.0, np.nan, 1]], np.float32)
    assert batch.matrix().tobytes() == matrix.tobytes(), CHANGED


def test_a_last_known_row_is_packed_so() -> None:
    assert CODEC.pack(PAYMENTS, *TIMES) == ROWS, CHANGED


def test_a_last_known_row_is_read_so() -> None:
    rows = CODEC.unpack(ROWS)
    found = (rows.event_time_us, rows.created_time_us, rows.sequence)
    assert [each.tolist() for each in found] == [each.tolist() for each in TIMES], CHANGED
    for name, column in PAYMENTS.items():
        assert rows.fields[name].mask.tolist() == column.mask.tolist(), CHANGED
        known = column.mask
        values = rows.fields[name].values[known]
        assert values.tolist() == column.values[known].tolist(), CHANGED


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_pile_is_made_so_in_any_order_and_read_so(order: slice) -> None:
    pile = GOLDEN["pile"]
    assert merge_pile(None, ROWS[order]) == (pile, 0), CHANGED
    assert merge_pile(pile, ROWS[order]) == (pile, 0), CHANGED
    assert split_pile(pile) == (ROWS, False), CHANGED
    dropped = pile[:7] + b"\x80" + pile[8:]
    assert split_pile(dropped) == (ROWS, True), CHANGED
