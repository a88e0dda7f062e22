"""Where a version came from: which code, which packages, which data."""

from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

from headrace.digest import digest_bytes, digest_file, digest_json

NO_COMMIT = "unknown"


class CodeVersion(NamedTuple):
    """The commit, and the digest of what differs from it; None when nothing does."""

    commit: str
    dirty_digest: str | None


def code_version(root: Path) -> CodeVersion:
    """Return the version of the code under `root`.

    Outside a git checkout (or without git) the commit is `"unknown"` and the digest is that of
    every Python file under `root`.
    """
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return CodeVersion(NO_COMMIT, _files_digest(root, sorted(root.rglob("*.py"))))
    changes = _git(root, "diff", "HEAD", "--binary") or b""
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--full-name", ":/")
    top = Path((_git(root, "rev-parse", "--show-toplevel") or b".").decode().strip())
    new = [top / name for name in (untracked or b"").decode().split("\0") if name]
    dirty = None
    if changes or new:
        dirty = digest_json([digest_bytes(changes), _files_digest(top, new)])
    return CodeVersion(commit.decode().strip(), dirty)


def environment_digest() -> str:
    """Return the digest of every installed distribution's name and version."""
    installed = {(d.name.lower(), d.version) for d in distributions()}
    return digest_json(sorted(f"{name}=={version}" for name, version in installed))


def table_digest(table: pa.Table) -> str:
    """Return the digest of a table's content: its columns, types and rows in their order.

    Columns are numbers, bools, times or text.
    """
    columns: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        # What lies under a null is arbitrary, so it is made equal, and the nulls are told apart.
        text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        zero = pa.scalar("" if text else 0).cast(column.type)
        columns[f"valid {name}"] = pc.is_valid(column)
        columns[f"value {name}"] = pc.fill_null(column, zero)
    whole = pa.table(columns).combine_chunks()
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole)
    return digest_bytes(sink.getvalue().to_pybytes())


def _git(root: Path, *arguments: str) -> bytes | None:
    if shutil.which("git") is None:
        return None
    result = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
    return result.stdout if result.returncode == 0 else None


def _files_digest(root: Path, files: list[Path]) -> str:
    return digest_json([[str(f.relative_to(root)), digest_file(f)] for f in files if f.is_file()])
