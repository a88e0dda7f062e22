"""In process, without sockets: what wire, protocol and execution cost a request beyond onnxruntime.

`python -m benchmarks.wire_parts.inprocess_part ONNX_FILE RUNS` measures, in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import harness
from benchmarks.harness import Figure
from benchmarks.wire_parts import frames, model
from benchmarks.wire_parts.bench import Bench
from benchmarks.wire_parts.header_styles import constant_blocks
from benchmarks.wire_parts.processes import pinned
from benchmarks.wire_parts.tools import InvalidRun

TICK = 32  # requests that arrive together
TICKS = 2_000  # in a run
COST_US_MAX = 2.8

# Takes what one read of a connection returned, runs the tick to its end, and returns what was
# written to the connection.
Tick = Callable[[bytes], bytes]


def open_connection(onnx_file: Path) -> Tick | None:  # noqa: ARG001 - until there is one
    """Return one connection of a server of ours over a transport that is not there.

    None: our own transport has no door for it yet.
    """
    return None


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield what a request costs."""
    command = [
        sys.executable, "-m", "benchmarks.wire_parts.inprocess_part", str(bench.onnx_file),
        str(bench.effort.runs),
    ]  # fmt: skip
    child = subprocess.run(
        pinned([bench.cores.server], command),
        cwd=harness.ROOT, check=False, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if child.returncode != 0:
        raise InvalidRun("its process failed; what it said is above")
    runs = json.loads(child.stdout)
    if runs is None:
        bench.note("in process: not measured, our own transport has no door for it")
        return
    yield Figure(
        figure=f"in process, ticks of {TICK}, beyond onnxruntime",
        unit="µs a request",
        runs=runs,
        peer=None,
        peer_runs=None,
        limit=COST_US_MAX,
    )


def cost_us(tick: Tick, onnx_file: Path, runs: int, ticks: int = TICKS) -> list[float]:
    """Return what a request costs beyond onnxruntime's own time, by run of `ticks` ticks."""
    wanted = model.expected(onnx_file)
    session = model.session(onnx_file)
    batch = np.repeat(wanted.row, TICK, axis=0)
    tick(frames.OPENING)
    pieces = _pieces(model.grpc_body(wanted.row), (runs + 1) * ticks)
    costs = []
    for number in range(runs + 1):
        own_ns, model_ns = [], []
        for piece in islice(pieces, ticks):
            start_ns = time.perf_counter_ns()
            written = tick(piece)
            middle_ns = time.perf_counter_ns()
            # In turns: what drifts on the machine meets both alike.
            session.run([model.OUTPUT], {model.INPUT: batch})
            own_ns.append(middle_ns - start_ns)
            model_ns.append(time.perf_counter_ns() - middle_ns)
            if number == 0:  # the warm-up
                _check(written, wanted)
        costs.append((median(own_ns) - median(model_ns)) / TICK / 1e3)
    return costs[1:]


def _pieces(body: bytes, ticks: int) -> Iterator[bytes]:
    """Yield the bytes of each tick's requests."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "script")
        frames.write_script(file, constant_blocks(ticks * TICK), body)
        data, offsets = file.read_bytes(), np.load(file.with_suffix(".npy")).tolist()
    for number in range(ticks):
        yield data[offsets[number * TICK] : offsets[(number + 1) * TICK]]


def _check(written: bytes, wanted: model.Expected) -> None:
    """Raise InvalidRun unless every request of the tick got its answer."""
    found = 0
    for kind, flags, payload in frames.walk(written):
        if kind == frames.DATA:
            model.check(model.grpc_answer(payload[5:]), wanted.answer, "the connection")
        found += kind == frames.HEADERS and flags & frames.END_STREAM
    if found != TICK:
        raise InvalidRun(f"{found} of {TICK} requests of a tick were answered")


def main() -> None:
    """Print the costs, or null."""
    onnx_file = Path(sys.argv[1])
    tick = open_connection(onnx_file)
    print(json.dumps(None if tick is None else cost_us(tick, onnx_file, int(sys.argv[2]))))


if __name__ == "__main__":
    main()
