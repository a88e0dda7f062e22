"""How much memory a process costs: its proportional set size, as the kernel counts it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path


def pss_bytes(pid: int) -> int:
    """Return a process's PSS: its private pages, and its share of each page that others map too.

    Unlike the resident set size, the sum over all processes is what the machine really gives, so
    that workers forked from one parent are not charged for its pages again and again.
    """
    return _rollup(pid)["Pss"]


def anonymous_bytes(pid: int) -> int:
    """Return how much of a process's memory is no file's: what it has allocated."""
    return _rollup(pid)["Anonymous"]


def _rollup(pid: int) -> dict[str, int]:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    fields = (line.split(":", 1) for line in rollup.splitlines()[1:])
    return {name: int(value.removesuffix("kB")) * 1024 for name, value in fields}


def peak_bytes(action: Callable[[], object]) -> int:
    """Return how much memory of Python's `action` needs at once."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()  # what is left running would count in other tests, too
