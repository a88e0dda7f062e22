"""GetFeatures replies as JSON: the bytes that msgspec makes."""

from __future__ import annotations

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features import FeatureBatch
from features.types import STATUS_NAMES
from server.protocol.features_json import json_replies, json_reply
from tests.server.protocol.test_features_reply import SERVICE, batches


def plainly(name: str, batch: FeatureBatch) -> bytes:
    """The body as Python makes it."""
    features, status = {}, {}
    for place, column in enumerate(batch.service.columns):
        found = batch.column(column)
        features[column] = [
            value if ok else None
            for value, ok in zip(found.values.tolist(), found.mask.tolist(), strict=True)
        ]
        status[column] = [STATUS_NAMES[each] for each in batch.status[:, place].tolist()]
    return msgspec.json.encode({"service": name, "features": features, "status": status})


@given(batches(), st.sampled_from(["everything", "", 'ü"\\\n' * 50]))
def test_the_body_is_that_of_msgspec(batch: FeatureBatch, name: str) -> None:
    assert bytes(json_reply(name, batch)) == plainly(name, batch)


@given(batches(), st.data())
def test_each_call_gets_its_rows(batch: FeatureBatch, data: st.DataObject) -> None:
    rows = len(batch)
    cuts = data.draw(st.sets(st.integers(1, rows - 1), max_size=9)) if rows > 1 else set()
    ends = np.array([0, *sorted(cuts), rows])
    found = json_replies("everything", batch, ends)
    for start, end, body in zip(ends, ends[1:], found, strict=False):
        part = FeatureBatch(batch.service, batch.words[start:end], batch.status[start:end])
        assert bytes(body) == plainly("everything", part)


def test_calls_of_one_row_with_everything_present() -> None:
    words = np.random.default_rng(1).integers(0, 2, (6, 12))
    batch = FeatureBatch(SERVICE, words, np.zeros((6, 12), np.uint8))
    for body, row in zip(json_replies("everything", batch, np.arange(7)), range(6), strict=True):
        part = FeatureBatch(SERVICE, words[row : row + 1], batch.status[row : row + 1])
        assert bytes(body) == plainly("everything", part)
