"""An hour of churn on real servers, plain and TLS: `python -m tests.soak.wire --minutes 60`.

Two `headrace serve` run a small model while clients come and go, call, cancel, break off and
attack. Every few seconds the workers' memory, descriptors and counters are noted. It ends with 1
when memory grew, when something is left once all clients are gone, or when an honest client did
not get its answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from server.wire.tls import H2, HTTP1
from tests.server.onnx_models import mlp_model, put
from tests.soak.churn import Address, Churn
from tests.support.memory import anonymous_bytes, pss_bytes
from tests.support.tls import Certificates

_READY_TIMEOUT_S = 120.0
_QUIET_TIMEOUT_S = 60.0
_ROWS_PRINTED = 40
_MIB = 1 << 20
# Memory is flat when the median of the last quarter is at most this much above the second one's.
_GROWTH_SHARE, _GROWTH_BYTES = 0.02, 1 * _MIB
_FDS_GROWTH = 2


@dataclass(frozen=True)
class Sample:
    """One worker at one time. `fds` holds its connections, too.

    Judged by `anonymous_bytes`: PSS moves with whatever other process maps the same libraries.
    """

    at_s: float
    anonymous_bytes: int
    pss_bytes: int
    rss_bytes: int
    fds: int
    connections: int
    live: int
    started: int
    abuse: int


class Served:
    """One `headrace serve` with one worker. Use in a `with` block."""

    def __init__(self, name: str, folder: Path, *arguments: str) -> None:
        self.name = name
        self.samples: list[Sample] = []
        self._folder = folder
        self._log = folder / "log"
        command = [
            sys.executable, "-P", "-m", "server.cli.main", "serve", "--model-repository",
            str(folder.parent / "models"), "--grpc-port", "0", "--http-port", "0",
            "--metrics-port", "0", "--data-dir", str(folder / "data"), *arguments,
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} did not start:\n{self.log}")
        self.ready: dict[str, Any] = json.loads(line)
        self.pid = self._worker_pid()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait(_READY_TIMEOUT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _worker_pid(self) -> int:
        children = json.loads((self._folder / "data" / "run" / "children.json").read_bytes())
        return next(int(child["pid"]) for child in children if child["role"] == "worker-0")

    def port(self, name: str) -> int:
        return int(self.ready[name].rpartition(":")[2])

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.ready['metrics']}{path}", timeout=30) as answer:
            found: bytes = answer.read()
            return found

    def look(self, at_s: float) -> Sample:
        """Take a sample. Raises OSError when the worker is gone."""
        debug = json.loads(self._get("/debug/grpc"))
        metrics = self._get("/metrics").decode()
        http = re.search(r"^headrace_http_connections\S* (\d+)", metrics, re.MULTILINE)
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        rss = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        assert http is not None
        assert rss is not None
        sample = Sample(
            at_s=at_s,
            anonymous_bytes=anonymous_bytes(self.pid),
            pss_bytes=pss_bytes(self.pid),
            rss_bytes=int(rss[1]) * 1024,
            fds=sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir()),
            connections=debug["connections"] + int(http[1]),
            live=debug["calls"]["live"],
            started=debug["calls"]["started"],
            abuse=sum(debug["abuse"].values()),
        )
        self.samples.append(sample)
        return sample

    def faults(self, quiet: Sample, fds_before: int) -> list[str]:
        """Say what is wrong after the end of the churn."""
        found = []
        if quiet.connections or quiet.live:
            found.append(f"{quiet.connections} connections and {quiet.live} calls are left")
        if quiet.fds > fds_before + _FDS_GROWTH:
            found.append(f"{quiet.fds} open files, {fds_before} before")
        if self._worker_pid() != self.pid:
            found.append("its worker was replaced")
        lines = self.log.splitlines()
        bad = [i for i, line in enumerate(lines) if "Traceback" in line or " ERROR " in line]
        if bad:
            found.append("its log has errors:\n" + "\n".join(lines[bad[0] : bad[0] + 30]))
        return [f"{self.name}: {each}" for each in found]


def growth(samples: Sequence[Sample]) -> tuple[float, float]:
    """Return the medians of memory in the second and in the last quarter, bytes."""
    quarter = len(samples) // 4
    second = [sample.anonymous_bytes for sample in samples[quarter : 2 * quarter]]
    last = [sample.anonymous_bytes for sample in samples[-quarter:]]
    return statistics.median(second), statistics.median(last)


def is_flat(before: float, after: float) -> bool:
    """Whether memory did not grow."""
    return after <= before * (1 + _GROWTH_SHARE) + _GROWTH_BYTES


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


_HEADER = "   time  server  anon MiB  PSS MiB  RSS MiB   fds  conns  live      calls    abuse"


def row(name: str, sample: Sample) -> str:
    return (
        f"{sample.at_s:6.0f}s  {name:<7} {sample.anonymous_bytes / _MIB:8.1f} "
        f"{sample.pss_bytes / _MIB:8.1f} {sample.rss_bytes / _MIB:8.1f} {sample.fds:5} "
        f"{sample.connections:6} {sample.live:5} {sample.started:10} {sample.abuse:8}"
    )


def address(served: Served, certificates: Certificates | None) -> Address:
    """Where to call it, and how."""
    ports = served.name, served.port("grpc"), served.port("http")
    if certificates is None:
        return Address(*ports)
    contexts = []
    for protocol in (H2, HTTP1):
        context = ssl.create_default_context(cafile=certificates.cert("ca"))
        context.check_hostname = False
        context.set_alpn_protocols([protocol])
        contexts.append(context)
    return Address(*ports, *contexts, certificates.credentials())


async def soak(servers: list[Served], churn: Churn, minutes: float, actors: int) -> list[str]:
    """Churn and sample; return what is wrong at the end."""
    before = {served.name: served.look(0.0).fds for served in servers}
    for served in servers:
        served.samples.clear()
    began_s = time.monotonic()
    length_s = minutes * 60
    interval_s = min(max(length_s / 400, 1.0), 5.0)
    print_every = max(round(length_s / interval_s / _ROWS_PRINTED), 1)
    running = asyncio.create_task(churn.run(actors))
    say(_HEADER)
    number = 0
    while (now_s := time.monotonic() - began_s) < length_s and not running.done():
        for served in servers:
            sample = await asyncio.to_thread(served.look, now_s)
            if number % print_every == 0:
                say(row(served.name, sample))
        number += 1
        await asyncio.sleep(interval_s)
    churn.stop()
    await running
    found = []
    for served in servers:
        quiet = await _quiet(served, began_s)
        say(row(served.name, quiet) + "  (all clients gone)")
        found += served.faults(quiet, before[served.name])
    return found


async def _quiet(served: Served, began_s: float) -> Sample:
    """Wait for what is left to go; a handshake that stalls has its ten seconds."""
    deadline_s = time.monotonic() + _QUIET_TIMEOUT_S
    while True:
        sample = await asyncio.to_thread(served.look, time.monotonic() - began_s)
        served.samples.pop()
        if not (sample.connections or sample.live) or time.monotonic() > deadline_s:
            return sample
        await asyncio.sleep(0.5)


def judge(served: Served) -> list[str]:
    """Say whether its memory was flat."""
    if len(served.samples) < 8:
        return [f"{served.name}: too few samples to judge by"]
    before, after = growth(served.samples)
    text = f"{before / _MIB:.1f} MiB in the second quarter, {after / _MIB:.1f} MiB in the last"
    if is_flat(before, after):
        say(f"{served.name}: memory is flat ({text})")
        return []
    return [f"{served.name}: memory grew ({text})"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.wire", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--actors", type=int, default=12, help="clients at once")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        root = Path(name)
        for folder in ("plain", "tls", "certificates"):
            (root / folder).mkdir()
        put(root / "models", "mlp", mlp_model(), config="max_batch_size: 8")
        certificates = Certificates(root / "certificates")
        files = certificates.files()
        flags = ("--tls-cert", str(files.cert), "--tls-key", str(files.key))
        with Served("plain", root / "plain") as plain, Served("tls", root / "tls", *flags) as tls:
            churn = Churn([address(plain, None), address(tls, certificates)], arguments.seed)
            found = asyncio.run(soak([plain, tls], churn, arguments.minutes, arguments.actors))
            found += [fault for served in (plain, tls) for fault in judge(served)]
    say(f"actions: {dict(churn.done.most_common())}")
    if churn.faults:
        found.append(f"{len(churn.faults)} honest calls, first:\n" + "\n".join(churn.faults[:20]))
    for fault in found:
        say(f"FAILED {fault}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
