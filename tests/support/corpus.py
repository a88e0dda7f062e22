"""The corpus of HTTP/2 inputs that a fuzzer found or a person thought of, small files of hex.

A line of a file is one read of the server; after each the layer above answers what it can. What
follows a `#` is a comment. `index.toml` says of each file what the server must make of it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """`says` is a verdict as `Output.verdict` has it; `whole` counts the requests that ended."""

    name: str
    reads: list[bytes]
    says: str
    whole: int
    why: str


def load(folder: Path) -> list[Case]:
    """All cases. Raises AssertionError where files and index do not match."""
    index = tomllib.loads((folder / "index.toml").read_text())
    files = {path.stem: path for path in folder.glob("*.hex")}
    assert set(index) == set(files), f"index.toml and files differ: {set(index) ^ set(files)}"
    return [
        Case(name, parse(files[name].read_text()), entry["says"], entry["whole"], entry["why"])
        for name, entry in sorted(index.items())
    ]


def parse(text: str) -> list[bytes]:
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [bytes.fromhex(line) for line in lines if line]


def write(path: Path, comment: str, reads: Sequence[bytes]) -> None:
    """Write a file of the corpus: one line of comment, then the reads."""
    lines = [f"# {comment}", *(read.hex() for read in reads if read)]
    path.write_text("\n".join(lines) + "\n")
