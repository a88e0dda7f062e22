"""The layout of prediction ids: they lie in logs, in truth, and with the applications."""

from __future__ import annotations

import uuid

from headrace.ids import PredictionIds, id_bytes, id_text, id_time_us
from tests.contracts.golden import CHANGED, read_json

GOLDEN = read_json("prediction_ids.json")


def test_the_bits_of_an_id() -> None:
    ids = PredictionIds(GOLDEN["worker"], GOLDEN["start random"])
    wanted = {int(counter): text for counter, text in GOLDEN["ids by counter"].items()}
    for counter in range(1, max(wanted) + 1):
        taken = ids.take(GOLDEN["event time"])
        assert taken.hex() == wanted.get(counter, taken.hex()), CHANGED


def test_its_text_and_its_time() -> None:
    for text in GOLDEN["ids by counter"].values():
        taken = bytes.fromhex(text)
        assert id_text(taken) == str(uuid.UUID(text)), CHANGED
        assert id_bytes(id_text(taken)) == taken, CHANGED
        assert id_time_us(taken) == GOLDEN["event time"] // 1000 * 1000, CHANGED
