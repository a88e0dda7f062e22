"""In process, without sockets: what wire, protocol and execution cost a request beyond onnxruntime.

`python -m benchmarks.wire_parts.inprocess_part ONNX_FILE RUNS` measures, in a process of its own.
"""

from __future__ import annotations

import asyncio
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
from benchmarks.common import frames, model
from benchmarks.common.frames import constant_blocks
from benchmarks.common.processes import pinned
from benchmarks.common.tools import InvalidRun
from benchmarks.harness import Figure
from benchmarks.wire_parts.bench import Bench
from server.execution.threads import RunThreads
from server.models.loaded import LoadedModel
from server.models.repository import ModelRepository
from server.protocol.infer_door import InferDoor
from server.protocol.infer_template import InferTemplates
from server.protocol.oip import InferAnswer, InferCall, InferenceProtocol
from server.protocol.oip_grpc import MODEL_INFER, InferenceCalls
from server.wire.grpc.connection import GrpcConnection
from server.wire.grpc.server import GrpcServer
from server.wire.handlers import Context

TICK = 32  # requests that arrive together
TICKS = 2_000  # in a run
COST_US_MAX = 2.8
_RUN_NS = 10_000

# Takes what one read of a connection returned, runs the tick to its end, and returns what was
# written to the connection.
Tick = Callable[[bytes], bytes]


class _Transport(asyncio.Transport):
    """Keeps what is written, instead of a socket."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


class _Loop:
    """Keeps what is to run at the end of the tick: no poll, whose time would be counted."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.due.append(callback)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Nothing ages here."""


async def open_connection(onnx_file: Path, folder: Path) -> Tick:
    """Return one connection of a server of ours over a transport that is not there."""
    repository = ModelRepository(folder, RunThreads(1, 1))
    await repository.load_all()
    protocol = InferenceProtocol(repository, _NothingReleased(), lambda: True)
    templates = InferTemplates(protocol)
    calls = InferenceCalls(protocol, templates.learn)
    server = GrpcServer(calls.table())
    server.add_door(MODEL_INFER, InferDoor(templates, server.tick))
    await server.open()
    # The first call teaches the template, in the real loop.
    await calls.table()[MODEL_INFER](model.grpc_body(model.expected(onnx_file).row)[5:], Context())
    for loaded in repository.models():
        # A run that somebody held up must not send the next one to a thread: there is none here.
        loaded.batcher.expect(TICK, _RUN_NS)
    loop, transport = _Loop(), _Transport()
    server.loop = loop  # type: ignore[assignment]
    connection = GrpcConnection(server, "")
    connection.connection_made(transport)

    def tick(data: bytes) -> bytes:
        connection.data_received(data)
        while loop.due:
            loop.due.pop(0)()
        written = b"".join(transport.written)
        transport.written.clear()
        return written

    return tick


class _NothingReleased:
    """No release plan: the repository's models answer."""

    def names(self) -> list[str]:
        return []

    def loaded(self, name: str, version: str) -> LoadedModel | None:
        return None

    async def infer(self, call: InferCall, context: Context) -> InferAnswer:
        raise NotImplementedError


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
        frames.write_script(file, constant_blocks(ticks * TICK), [body])
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
    """Print the costs."""
    onnx_file = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, model.MODEL, "1", "model.onnx")
        path.parent.mkdir(parents=True)
        path.write_bytes(onnx_file.read_bytes())
        print(json.dumps(asyncio.run(_measured(onnx_file, Path(folder), int(sys.argv[2])))))


async def _measured(onnx_file: Path, folder: Path, runs: int) -> list[float]:
    return cost_us(await open_connection(onnx_file, folder), onnx_file, runs)


if __name__ == "__main__":
    main()
