"""`headrace features history` and `materialize`, started as a user starts them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.server.cli.test_main import headrace
from tests.support.valkey import LiveValkey

DEFINITIONS = """
from features import CsvFiles, Entity, EventSource, FeatureService, FeatureView, Field, Int64

user = Entity("user", ["id"])
facts = EventSource("facts", [Field("id", Int64), Field("n", Int64)],
    history=CsvFiles("facts.csv", event_time="t"))
known = FeatureView("known", user, facts, ["n"])
service = FeatureService("known_facts", 1, [known])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "definitions.py").write_text(DEFINITIONS)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "facts.csv").write_text("id,n,t\n1,9007199254740993,5\n2,,5\n")
    spine = {"id": ["1", "2", "3"], "event_time": [7, 7, 7], "label": [1, 0, 1]}
    pq.write_table(pa.table(spine), tmp_path / "spine.parquet")
    return tmp_path


def history(folder: Path, *arguments: str):  # type: ignore[no-untyped-def]
    files = ("--spine", "spine.parquet", "--out", "out.parquet", "--definitions", "definitions.py")
    return headrace("features", "history", "known_facts", *files, *arguments, folder=folder)


def test_a_training_set_is_written(folder: Path) -> None:
    done = history(folder, "--project", "data", "--statuses")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.split() == ["file", "rows", "features", "out.parquet", "3", "1"]
    assert pq.read_table(folder / "out.parquet").to_pydict() == {
        "id": ["1", "2", "3"],
        "event_time": [7, 7, 7],
        "label": [1, 0, 1],
        "known:n": [2**53 + 1, None, None],
        "known:n:status": ["present", "null", "not_found"],
    }


def test_what_is_wrong_is_one_line_without_paths_of_the_machine(folder: Path) -> None:
    done = history(folder)
    assert done.returncode == 1
    assert "CsvFiles('facts.csv'): there is no file" in done.stderr
    assert "--project" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert str(folder) not in done.stderr


def test_what_has_arrived_is_pushed_once(folder: Path, valkey: LiveValkey) -> None:
    arguments = ("--definitions", "definitions.py", "--project", "data", "--redis", valkey.url)
    first = headrace("features", "materialize", *arguments, folder=folder)
    assert first.returncode == 0, first.stderr
    assert first.stdout.split() == ["source", "rows", "read", "rows", "pushed", "facts", "2", "2"]
    with (folder / "data" / "facts.csv").open("a") as file:
        file.write("3,7,6\n")
    second = headrace("features", "materialize", "facts", *arguments, folder=folder)
    assert second.stdout.split()[-3:] == ["facts", "3", "1"]
    assert valkey.command("XLEN", "hr:events") == b":2\r\n"
    wrong = headrace("features", "materialize", "fact", *arguments, folder=folder)
    assert wrong.returncode == 1
    assert "unknown source with a history of its own 'fact'" in wrong.stderr
    assert "did you mean 'facts'?" in wrong.stderr
