"""The machine and this process as Linux tells of them: Triton's CPU families, and `process_…`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from server.metrics import Metric, Sample

_STAT, _MEMORY = Path("/proc/stat"), Path("/proc/meminfo")
_OWN = Path("/proc/self/stat")
# Of the first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal.
_TIMES, _IDLE = 8, slice(3, 5)


class MachineLoad:
    """How busy all processors were since the last look, 0 to 1."""

    def __init__(self) -> None:
        self._busy, self._all = busy_ticks(_STAT.read_text(encoding="utf-8"))
        self._utilization = 0.0

    def look(self) -> float:
        """Return what it was since the last look; between two of one tick, the same again."""
        busy, everything = busy_ticks(_STAT.read_text(encoding="utf-8"))
        passed = everything - self._all
        if passed > 0:
            self._utilization = min(max((busy - self._busy) / passed, 0.0), 1.0)
            self._busy, self._all = busy, everything
        return self._utilization


def busy_ticks(stat: str) -> tuple[int, int]:
    """Return of the text of /proc/stat (ticks not idle, all ticks) since the machine started."""
    times = [int(text) for text in stat.splitlines()[0].split()[1 : 1 + _TIMES]]
    return sum(times) - sum(times[_IDLE]), sum(times)


def memory_bytes(meminfo: str) -> tuple[int, int]:
    """Return of the text of /proc/meminfo (bytes in all, bytes in use): what nobody could have."""
    kib = {line.split(":")[0]: int(line.split()[1]) for line in meminfo.splitlines()}
    return kib["MemTotal"] * 1024, (kib["MemTotal"] - kib["MemAvailable"]) * 1024


def machine_metrics(load: MachineLoad) -> list[Metric]:
    """Return Triton's families of the machine."""
    total_bytes, used_bytes = memory_bytes(_MEMORY.read_text(encoding="utf-8"))
    values = [
        ("utilization", "CPU utilization rate [0.0 - 1.0] of the machine since the last scrape",
         load.look()),
        ("memory_total_bytes", "CPU total memory (RAM), in bytes", total_bytes),
        ("memory_used_bytes", "CPU used memory (RAM), in bytes", used_bytes),
    ]  # fmt: skip
    return [
        Metric(f"nv_cpu_{name}", "gauge", text, [Sample(value)]) for name, text, value in values
    ]


def process_metrics(labels: Mapping[str, str]) -> list[Metric]:
    """Return what the client libraries of Prometheus tell of a process."""
    # Behind the name, which may hold anything, brackets too.
    fields = _OWN.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    since_boot_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / ticks
    values = [
        ("cpu_seconds_total", "counter", "CPU time spent, in seconds", time.process_time()),
        ("resident_memory_bytes", "gauge", "Resident memory, in bytes",
         int(fields[21]) * os.sysconf("SC_PAGE_SIZE")),
        ("start_time_seconds", "gauge", "Start, in seconds since 1970",
         round(time.time() - since_boot_s, 2)),
    ]  # fmt: skip
    return [
        Metric(f"process_{name}", kind, text, [Sample(value, dict(labels))])
        for name, kind, text, value in values
    ]
