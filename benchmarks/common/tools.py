"""h2load: run, and what it says read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.common.processes import pinned

PACKAGES = {"h2load": "nghttp2-client", "taskset": "util-linux"}
KILL_AFTER_S = 10.0  # beyond the run's own time


class InvalidRun(Exception):  # noqa: N818 - a result of a run, not a fault of the program
    """A run whose figure must not count: calls failed, or answers were not what they should be."""


class Run(NamedTuple):
    """What h2load measured. `client_share` is the CPU time of one of its threads."""

    requests_per_s: float
    client_share: float


def missing_tools() -> list[str]:
    """Say of each tool that this machine lacks how to get it."""
    return [
        f"{tool} is missing: apt-get install {package}"
        for tool, package in PACKAGES.items()
        if shutil.which(tool) is None
    ]


def h2load(
    url: str,
    shape: tuple[int, int],
    body: Path,
    headers: Mapping[str, str],
    cpus: Sequence[int],
    run_s: float,
    reply_bytes: int,
) -> Run:
    """Post `body` with `shape` (connections, streams each); no streams: HTTP/1.1, keep-alive.

    Raises InvalidRun. h2load sees no grpc-status: a failed call is one whose DATA is missing. A
    run's time includes that of connecting.
    """
    connections, streams = shape
    threads = min(len(cpus), connections)
    protocol = [f"--max-concurrent-streams={streams}"] if streams else ["--h1"]
    command = [
        "h2load", f"--duration={round(run_s * 1000)}ms", f"--clients={connections}",
        f"--threads={threads}", f"--data={body}", *protocol,
        *(f"--header={name}: {value}" for name, value in headers.items()), url,
    ]  # fmt: skip
    text, cpu_s, wall_s = _run(pinned(cpus, command), run_s)
    in_flight = connections * max(streams, 1)
    return Run(read_h2load(text, in_flight, reply_bytes), cpu_s / wall_s / threads)


def read_h2load(text: str, in_flight: int, reply_bytes: int) -> float:
    """Return the requests/s of a run that is valid. Raises InvalidRun."""
    rate = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", text)
    counts = re.search(
        r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, "
        r"(\d+) errored, (\d+) timeout",
        text,
    )
    data = re.search(r"traffic: .*, \S+ \((\d+)\) data", text)
    if rate is None or counts is None or data is None:
        raise InvalidRun(f"h2load says: {text[-500:]}")
    done, succeeded, failed, errored, timeout = map(int, counts.groups())
    if done == 0 or succeeded != done or failed or errored or timeout:
        raise InvalidRun(f"h2load says: {counts[0]}")
    # The replies that were cut off by the end of the run have been counted in bytes only.
    surplus_bytes = int(data[1]) - done * reply_bytes
    if not 0 <= surplus_bytes <= in_flight * reply_bytes:
        raise InvalidRun(
            f"h2load got {data[1]} bytes in {done} replies of {reply_bytes} bytes: calls failed"
        )
    return float(rate[1])


def _run(command: list[str], run_s: float) -> tuple[str, float, float]:
    """Return what it says, and its CPU and wall time. Raises InvalidRun when it hangs."""
    with tempfile.TemporaryFile() as output:
        start_s = time.monotonic()
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        killer = threading.Timer(run_s + KILL_AFTER_S, child.kill)
        killer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        finally:
            killer.cancel()
        wall_s = time.monotonic() - start_s
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if child.returncode != 0:
        raise InvalidRun(f"h2load ended with {child.returncode}: {text[-500:]}")
    return text, usage.ru_utime + usage.ru_stime, wall_s
