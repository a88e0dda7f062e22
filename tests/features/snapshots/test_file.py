"""A snapshot's file: what went in comes out, and nothing else does."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.online.keys import CHECKPOINT, START, Checkpoint
from features.snapshots import file as file_module
from features.snapshots.file import TakenRows, open_snapshot, write_snapshot
from headrace.errors import FailedPreconditionError, HeadraceError, NotFoundError

ROWS = {b"hr:{%d}:view:1" % number: b"%d" % number * number for number in range(50)}


def taken(rows: dict[bytes, bytes]) -> TakenRows:
    checkpoint = Checkpoint("test", 0, START, 0).encode()
    return TakenRows({**rows, CHECKPOINT: checkpoint}, {"sha256:view": 1}, 1_700_000_000_000_000)


@given(rows=st.dictionaries(st.binary(max_size=40), st.binary(max_size=200), max_size=30))
def test_every_row_is_found_and_no_other(
    rows: dict[bytes, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows.pop(CHECKPOINT, None)
    path = tmp_path_factory.mktemp("s") / "a.snapshot"
    digest = write_snapshot(path, taken(rows))
    snapshot = open_snapshot(path)
    assert (len(snapshot), snapshot.digest) == (len(rows), digest)
    assert snapshot.schema_ids == {"sha256:view": 1}
    assert snapshot.taken_at_us == 1_700_000_000_000_000
    for key, value in rows.items():
        assert snapshot.get(key) == value
        assert rows.get(key + b"x") == snapshot.get(key + b"x")


def test_the_same_rows_have_the_same_digest_in_whatever_order(tmp_path: Path) -> None:
    forth = write_snapshot(tmp_path / "a", taken(ROWS))
    back = write_snapshot(tmp_path / "b", taken(dict(reversed(ROWS.items()))))
    other = write_snapshot(tmp_path / "c", taken({**ROWS, b"one": b"more"}))
    assert forth == back != other


def test_keys_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "_hash_of", lambda key: len(key) % 2)
    write_snapshot(tmp_path / "a", taken(ROWS))
    snapshot = open_snapshot(tmp_path / "a")
    assert {key: snapshot.get(key) for key in ROWS} == ROWS
    assert snapshot.get(b"hr:{51}:view:1") is None


def test_a_file_that_was_changed_or_cut_is_refused(tmp_path: Path) -> None:
    path, bad = tmp_path / "a", tmp_path / "bad"
    digest = write_snapshot(path, taken(ROWS))
    whole = path.read_bytes()
    draw = random.Random(5)
    refused = 0
    for _ in range(300):
        at, bit = draw.randrange(len(whole)), draw.randrange(8)
        bad.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        try:
            snapshot = open_snapshot(bad)
        except HeadraceError:
            refused += 1
        else:  # what pads the file may be anything
            assert snapshot.digest == digest
            assert {key: snapshot.get(key) for key in ROWS} == ROWS
    assert refused > 200
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        bad.write_bytes(whole[:length])
        with pytest.raises(FailedPreconditionError, match="not a whole snapshot"):
            open_snapshot(bad)


def test_what_is_no_snapshot_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="snapshot 'nothing': no such file"):
        open_snapshot(tmp_path / "nothing")
    other = tmp_path / "other.arrow"
    table = pa.table({"a": [1]})
    with pa.ipc.new_file(str(other), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(FailedPreconditionError, match="not a whole snapshot"):
        open_snapshot(other)
    with pytest.raises(FailedPreconditionError, match="cannot be written"):
        write_snapshot(tmp_path / "no folder" / "a", taken(ROWS))


def test_who_has_a_snapshot_open_goes_on_with_it_when_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_snapshot(path, taken(ROWS))
    before = open_snapshot(path)
    write_snapshot(path, taken({b"other": b"row"}))
    assert {key: before.get(key) for key in ROWS} == ROWS
    assert open_snapshot(path).get(b"other") == b"row"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_nothing_is_to_be_waited_for(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "a", taken(ROWS))
    with pytest.raises(FailedPreconditionError, match="no ingester"):
        _ = open_snapshot(tmp_path / "a").progress
