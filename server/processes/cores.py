"""How many cores this process may use: its affinity, and the quota of its control group."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_cores(cgroup: Path = _CGROUP) -> int:
    """Return how many threads can really run at the same time, at least 1.

    Containers limit by a quota of time rather than by affinity: whoever starts as many threads as
    the machine has cores is then stopped for most of each period.
    """
    quota = _quota(cgroup)
    cores = len(os.sched_getaffinity(0))
    return max(cores if quota is None else min(cores, round(quota)), 1)


def _quota(cgroup: Path) -> float | None:
    """Return the quota in cores; None without one. Version 2's file, else version 1's."""
    try:
        quota, _, period = (cgroup / "cpu.max").read_text().strip().partition(" ")
    except OSError:
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not (quota.isdigit() and period.isdigit() and int(period)):
        return None  # max, or -1
    return int(quota) / int(period)
