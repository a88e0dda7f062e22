from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from headrace.errors import InvalidArgumentError
from monitor import LOG_SCHEMA, TRUTH_SCHEMA, empty_log, log_batch
from monitor.schema import as_received, to_send

# CONTRACTS §5, column by column. A change here is a change of the contract.
LOG_COLUMNS = """
prediction_id fixed_size_binary[16]
attempt uint8
event_time timestamp[us, tz=UTC]
logged_time timestamp[us, tz=UTC]
model dictionary<values=string, indices=int32, ordered=0>
version dictionary<values=string, indices=int32, ordered=0>
service dictionary<values=string, indices=int32, ordered=0>
plan uint64
policy dictionary<values=string, indices=int32, ordered=0>
arm dictionary<values=string, indices=int32, ordered=0>
propensity double
pmf list<item: double>
flags uint16
key_hash uint64
context_hash uint64
sampling_probability float
features binary
schema_id uint32
feature_status binary
inputs binary
outputs list<item: float>
outputs_raw binary
decision dictionary<values=string, indices=int32, ordered=0>
queue_us uint32
features_us uint32
compute_us uint32
total_us uint32
status uint8
worker uint16
trace_id fixed_size_binary[16]
attributions list<item: float>
attribution_base list<item: float>
"""
TRUTH_COLUMNS = """
prediction_id fixed_size_binary[16]
entity_key binary
name string
value double
event_time timestamp[us, tz=UTC]
created_time timestamp[us, tz=UTC]
source string
"""


@pytest.mark.parametrize(
    ("schema", "columns"), [(LOG_SCHEMA, LOG_COLUMNS), (TRUTH_SCHEMA, TRUTH_COLUMNS)]
)
def test_the_schema_is_the_contract(schema: pa.Schema, columns: str) -> None:
    found = [f"{field.name} {field.type}" for field in schema]
    assert found == columns.strip().splitlines()


def test_a_batch_takes_lists_arrays_and_arrow_and_fills_the_rest_with_nulls() -> None:
    when = datetime(2013, 10, 1, 12, tzinfo=UTC)
    batch = log_batch(
        {
            "event_time": [when, when],
            "model": ["delay", "fare"],
            "attempt": np.array([0, 1]),
            "arm": pa.array(["a", None]),
            "outputs": [[0.5], None],
        },
        rows=2,
    )
    assert batch.schema == LOG_SCHEMA
    assert batch.column("model").to_pylist() == ["delay", "fare"]
    assert batch.column("arm").to_pylist() == ["a", None]
    assert batch.column("event_time").to_pylist() == [when, when]
    assert batch.column("trace_id").null_count == 2
    assert empty_log().num_rows == 0


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"colour": [1, 2]}, "colour"),
        ({"attempt": [1]}, "attempt"),
        ({"attempt": [1, 300]}, "attempt"),
        ({"prediction_id": [b"short", b"x"]}, "prediction_id"),
        ({"model": [1.5, {}]}, "model"),
        ({"propensity": pa.array(["x", "y"])}, "propensity"),
    ],
)
def test_a_bad_column_is_named(columns: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        log_batch(columns, rows=2)


FIRST = [line.split()[0] for line in LOG_COLUMNS.split("\n")[1:-3]]


def test_a_collector_of_the_first_release_is_sent_its_own_columns() -> None:
    plain = log_batch({"attempt": [0, 1]}, 2)
    sent = to_send(plain)
    assert sent.schema.names == FIRST
    assert sent.schema.equals(pa.schema([LOG_SCHEMA.field(name) for name in FIRST]))
    assert as_received(sent).equals(plain)
    explained = log_batch({"attributions": [None, [0.5]], "attribution_base": [None, [0.1]]}, 2)
    assert to_send(explained).equals(explained)
    assert as_received(explained) is explained


def test_what_only_a_later_release_knows_is_left_out() -> None:
    batch = log_batch({"attempt": [0, 1], "attributions": [[1.0], None]}, 2)
    later = batch.append_column("colour", pa.array(["blue", "red"]))
    assert as_received(later).equals(batch)


@pytest.mark.parametrize("change", ["missing", "other type"])
def test_a_batch_of_another_kind_is_refused(change: str) -> None:
    batch = log_batch({"attempt": [0]}, 1)
    if change == "missing":
        batch = batch.drop_columns(["model"])
    else:
        at = batch.schema.get_field_index("attributions")
        batch = batch.set_column(at, "attributions", pa.array([1.0]))
    with pytest.raises(InvalidArgumentError, match="another schema"):
        as_received(batch)
