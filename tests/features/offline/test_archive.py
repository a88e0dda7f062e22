"""The archive: events once, whatever is written again; small files become one, and readers see no
difference."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pyarrow as pa
import pytest

from features import EventSource, Field, Int64
from features.offline import OfflineStore
from features.offline import archive as module
from features.offline.archive import Archive, ArchiveEnd, streamed_files
from headrace.errors import InternalError

LATER_S = time.time() + module.KEPT_S + 86_400.0  # whenever this file's tests run


def table(first: int, count: int, step: int = 1) -> pa.Table:
    sequence = [first + step * i for i in range(count)]
    columns = {name: pa.array(sequence, pa.int64()) for name in ("n", "event_time", "created_time")}
    return pa.table({**columns, "sequence": pa.array(sequence, pa.int64())})


def sequences(root: Path, source: str = "trips") -> list[int]:
    found: list[int] = OfflineStore(root).read(source)["sequence"].to_pylist()
    return found


def test_events_are_there_with_the_sequence_that_they_came_with(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    assert archive.end() is None
    assert archive.next_sequence() == 0
    end = ArchiveEnd("abc", "17-1", 9)
    archive.append({"trips": table(0, 3, 2), "shops": table(1, 3, 2)}, end)
    assert archive.end() == end
    assert sequences(tmp_path) == [0, 2, 4]
    assert sequences(tmp_path, "shops") == [1, 3, 5]
    assert archive.next_sequence() == 6
    assert OfflineStore(tmp_path).sources() == ["shops", "trips"]


def test_what_is_written_again_is_there_once(tmp_path: Path) -> None:
    # However it is cut the second time: the end was not written, the files were.
    rng = random.Random(3)
    for attempt in range(20):
        root = tmp_path / str(attempt)
        archive = Archive(root)
        done = 0
        while done < 60:
            size = rng.randrange(1, 12)
            archive.append({"trips": table(done, size)}, ArchiveEnd("abc", f"{done}-0", done))
            done = max(0, done + size - rng.choice([0, 0, 3, 30]))
        archive.append({"trips": table(done, 5)}, ArchiveEnd("abc", "99-0", done + 5))
        found = sequences(root)
        assert found == list(range(found[-1] + 1))


def test_appended_and_streamed_events_lie_side_by_side(tmp_path: Path) -> None:
    archive, store = Archive(tmp_path), OfflineStore(tmp_path)
    archive.append({"trips": table(40, 2)}, ArchiveEnd("abc", "1-0", 42))
    assert store.append("trips", pa.table({"n": [7, 8], "event_time": [1, 2]})) == 2
    assert store.append("trips", pa.table({"n": [9], "event_time": [1]})) == 3
    archive.append({"trips": table(42, 1)}, ArchiveEnd("abc", "2-0", 43))
    assert store.read("trips")["n"].to_pylist() == [7, 8, 9, 40, 41, 42]


def test_small_files_become_one_and_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MERGED_AT", 4)
    monkeypatch.setattr(module, "MERGE_BYTES", (2500, 1 << 20))
    archive = Archive(tmp_path)
    files = []
    for i in range(60):
        archive.append({"trips": table(5 * i, 5)}, ArchiveEnd("abc", f"{i}-0", 5 * i + 5))
        archive.merge(LATER_S)
        files.append(len(list((tmp_path / "trips").iterdir())))
        assert sequences(tmp_path) == list(range(5 * i + 5))
    assert max(files) < 14


def test_a_kill_while_merging_leaves_each_event_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MERGED_AT", 3)
    archive = Archive(tmp_path)
    for i in range(3):
        archive.append({"trips": table(5 * i, 5)}, ArchiveEnd("abc", f"{i}-0", 5 * i + 5))
    folder = tmp_path / "trips"
    small = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert archive.merge(LATER_S) == 3
    (merged,) = folder.iterdir()
    # Killed when the merged file had its name: the small ones are still there.
    for name, data in small.items():
        (folder / name).write_bytes(data)
    assert sequences(tmp_path) == list(range(15))
    assert [file.path for file in streamed_files(folder)] == [merged]
    archive.append({"trips": table(10, 8)}, ArchiveEnd("abc", "9-0", 18))
    assert sequences(tmp_path) == list(range(18))
    assert archive.merge(LATER_S) == 3
    assert len(list(folder.iterdir())) == 2


def test_who_reads_while_files_are_merged_reads_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MERGED_AT", 3)
    archive, store = Archive(tmp_path), OfflineStore(tmp_path)
    for i in range(3):
        archive.append({"trips": table(5 * i, 5)}, ArchiveEnd("abc", f"{i}-0", 5 * i + 5))
    source = EventSource("trips", [Field("n", Int64)])
    reading = store.batches(source, ["n"])
    first = next(reading)
    archive.merge(time.time())
    rest = [first, *reading]
    assert [n for part in rest for n in part["n"].to_pylist()] == list(range(15))
    assert sequences(tmp_path) == list(range(15))
    assert archive.merge(LATER_S) == 3
    assert sequences(tmp_path) == list(range(15))


def test_files_of_other_columns_are_not_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MERGED_AT", 3)
    archive = Archive(tmp_path)
    for i in range(6):
        part = table(i, 1)
        part = part if i < 2 else part.append_column("more", pa.array([i]))
        archive.append({"trips": part}, ArchiveEnd("abc", f"{i}-0", i + 1))
        archive.merge(LATER_S)
    assert sequences(tmp_path) == list(range(6))
    assert len(list((tmp_path / "trips").iterdir())) == 4
    found = OfflineStore(tmp_path).read("trips")["more"].to_pylist()
    assert found == [None, None, 2, 3, 4, 5]


def test_one_process_archives(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "new")
    lock = archive.lock()
    assert lock is not None
    assert Archive(tmp_path / "new").lock() is None
    lock.close()
    again = archive.lock()
    assert again is not None
    again.close()


def test_an_end_that_was_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "archive.json").write_bytes(b"{")
    with pytest.raises(InternalError, match=r"archive\.json of the history cannot be read"):
        Archive(tmp_path).end()
