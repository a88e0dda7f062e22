"""A table that all workers of a machine map."""

from __future__ import annotations

import mmap
import os
from pathlib import Path


def map_table(path: Path, size_bytes: int) -> mmap.mmap:
    """Map it; who comes first makes it, of zeros."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size < size_bytes:
            os.ftruncate(descriptor, size_bytes)
        return mmap.mmap(descriptor, size_bytes)
    finally:
        os.close(descriptor)
