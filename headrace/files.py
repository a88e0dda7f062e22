"""Files that are there as a whole or not at all, whatever is killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Give the path of a file to write; when done, it is `target`, and on disk.

    A kill leaves at most `<target's name without its suffix>.partial`, which the next one replaces.
    """
    partial = target.with_suffix(".partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the name must be as durable as what is under it
    finally:
        os.close(folder)
