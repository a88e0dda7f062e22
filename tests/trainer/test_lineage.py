import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trainer.lineage import NO_COMMIT, code_version, environment_digest, table_digest


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    result = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


@pytest.fixture
def checkout(tmp_path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "pipeline.py").write_text("one = 1\n")
    (tmp_path / ".gitignore").write_text("*.log\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def test_a_clean_checkout_is_its_commit(checkout):
    version = code_version(checkout / "project")
    assert version == (git(checkout, "rev-parse", "HEAD"), None)


def test_every_kind_of_change_has_a_digest_of_its_own(checkout):
    digests = set()
    (checkout / "project" / "pipeline.py").write_text("one = 2\n")
    digests.add(code_version(checkout / "project").dirty_digest)
    (checkout / "project" / "data.py").write_text("two = 2\n")
    digests.add(code_version(checkout / "project").dirty_digest)
    (checkout / "outside.py").write_text("three = 3\n")
    digests.add(code_version(checkout / "project").dirty_digest)
    (checkout / "outside.py").write_text("three = 4\n")
    digests.add(code_version(checkout / "project").dirty_digest)
    assert len(digests - {None}) == 4
    assert code_version(checkout / "project") == code_version(checkout)


def test_an_ignored_file_changes_nothing(checkout):
    (checkout / "noise.log").write_text("x")
    assert code_version(checkout).dirty_digest is None


def test_outside_git_the_files_are_the_version(tmp_path):
    (tmp_path / "pipeline.py").write_text("one = 1\n")
    before = code_version(tmp_path)
    assert before.commit == NO_COMMIT
    (tmp_path / "pipeline.py").write_text("one = 2\n")
    assert code_version(tmp_path).dirty_digest != before.dirty_digest


def test_the_environment_is_the_same_twice():
    assert environment_digest() == environment_digest()


def test_a_tables_digest_is_that_of_its_content():
    table = pa.table({"a": [1, 2, None], "b": ["x", "y", "z"]})
    digest = table_digest(table)
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert table_digest(chunked) == digest
    assert table_digest(table.replace_schema_metadata({"note": "none"})) == digest
    buffers = [pa.py_buffer(b"\x03"), pa.py_buffer(np.array([1, 2, 99]).tobytes())]
    hidden = pa.Array.from_buffers(pa.int64(), 3, buffers)
    assert hidden.to_pylist() == [1, 2, None]
    assert table_digest(table.set_column(0, "a", hidden)) == digest
    others = [
        table.slice(0, 2),
        table.take([1, 0, 2]),
        table.rename_columns(["a", "c"]),
        table.set_column(0, "a", pa.array([1, 2, 0])),
        table.set_column(0, "a", pa.array([1, 2, None], pa.int32())),
    ]
    assert len({digest, *map(table_digest, others)}) == 6
