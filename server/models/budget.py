"""Memory for models: an estimate before a load, against what there is.

The estimate is an upper bound made of the files' sizes, then of what an earlier load of the same
model took (`Loader::EstimateResources` of TensorFlow Serving is the model). What is used is what
the process really holds: arenas that grew, and models under a release plan, count by themselves.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import ResourceExhaustedError
from server.models.integrity import VersionFiles
from server.models.memory import give_back

_MIB = 1 << 20
# Measured with onnxruntime 1.32, bytes of memory at the peak for each byte of file: 3.1 for a
# network whose weights are packed anew, 13.3 for trees, whose attributes are widened.
_PEAK, _PEAK_OF_TREES = 3.5, 14.0
_SESSION_BYTES = 16 * _MIB
# From what a load kept to what it took at its peak.
_PEAK_OF_KEPT = 1.5
_REMEMBERED_MAX = 1024
_PAGE_BYTES = resource.getpagesize()
_SHARE = 0.8  # of what the machine has left; the rest is for requests
_SLACK_BYTES = 1024 * _MIB


@dataclass(slots=True)
class Growth:
    """What a load took: bytes that the process holds more than before it."""

    held_bytes: int = 0


class MemoryBudget:
    """`limit_bytes` is how much more than at its making the process may hold."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._start_bytes = held_bytes()
        self._reserved_bytes = 0  # by loads that are under way
        self._kept: dict[tuple[str, VersionFiles], int] = {}
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """What the process holds more than at the start."""
        return max(held_bytes() - self._start_bytes, 0)

    def estimate(self, name: str, files: VersionFiles) -> int:
        """Return an upper bound of the memory that a load takes; never more than it was before."""
        peak = _PEAK_OF_TREES if files.has_trees else _PEAK
        bound = int(files.model_bytes * peak + files.external_bytes * _PEAK) + _SESSION_BYTES
        kept = self._kept.get((name, files))
        return bound if kept is None else min(bound, int(kept * _PEAK_OF_KEPT) + _SESSION_BYTES)

    @contextmanager
    def reserve(self, name: str, files: VersionFiles) -> Iterator[Growth]:
        """Hold the memory for a load while it runs, and measure what it keeps.

        Raises ResourceExhaustedError when the estimate is more than is left. For any thread.
        """
        estimate = self.estimate(name, files)
        if not self._take(estimate):
            give_back()  # what earlier models left behind
            if not self._take(estimate):
                raise ResourceExhaustedError(
                    "the model needs more memory than is left for models",
                    expected=f"at most {self._left() // _MIB} MiB "
                    f"of {self.limit_bytes // _MIB} MiB",
                    got=f"an estimate of {-(-estimate // _MIB)} MiB",
                    mend="unload a model, or raise --model-memory-mib",
                )
        before = held_bytes()
        growth = Growth()
        try:
            yield growth
            growth.held_bytes = min(max(held_bytes() - before, 0), estimate)
            self._remember(name, files, growth.held_bytes)
        finally:
            with self._lock:
                self._reserved_bytes -= estimate

    def _left(self) -> int:
        return max(self.limit_bytes - self.used_bytes - self._reserved_bytes, 0)

    def _take(self, estimate: int) -> bool:
        with self._lock:
            fits = estimate <= self._left()
            if fits:
                self._reserved_bytes += estimate
        return fits

    def _remember(self, name: str, files: VersionFiles, kept: int) -> None:
        with self._lock:
            kept = max(kept, self._kept.pop((name, files), 0))
            self._kept[name, files] = kept
            if len(self._kept) > _REMEMBERED_MAX:
                del self._kept[next(iter(self._kept))]


def held_bytes() -> int:
    """Return the memory of this process that is no file's."""
    fields = Path("/proc/self/statm").read_bytes().split()
    return (int(fields[1]) - int(fields[2])) * _PAGE_BYTES


def share_of_machine(workers: int) -> int:
    """Return how many bytes each of so many workers may use for models, by default."""
    return int(available_bytes() * _SHARE) // workers


def available_bytes(root: Path = Path("/")) -> int:
    """Return what is left of the machine's memory, or of the container's."""
    left = [_field(root / "proc/meminfo", "MemAvailable:") * 1024]
    group = root / "sys/fs/cgroup"
    for folder, most, used, cache in (
        (group, "memory.max", "memory.current", "inactive_file"),
        (group / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            taken = int((folder / used).read_text()) - _field(folder / "memory.stat", cache)
            left.append(int((folder / most).read_text()) - taken)
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(min(left), 0)


def _field(path: Path, name: str) -> int:
    """Return the number that follows `name` in a file of lines."""
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return 0


def fence(room_bytes: int) -> None:
    """Let an allocation that would take the process `room_bytes` further than it is now fail.

    So a graph of a few bytes that makes a tensor of many gigabytes is an error of its request, not
    the end of the worker.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = _field(Path("/proc/self/status"), "VmData:") * 1024 + room_bytes + _SLACK_BYTES
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
