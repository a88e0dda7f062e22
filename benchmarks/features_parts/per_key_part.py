"""What a key costs in a tick of lookups, one tick in flight, against redis-benchmark's MGET.

Ours reads rows of 50 floats into features: in one call of so many entities, and in so many
GetFeatures of one entity each, from the wire's bytes to those of the replies. redis-benchmark reads
as many keys of the same length with the same values on one connection and looks at nothing. Both
run on the servers' core, against the same store.
"""

from __future__ import annotations

import asyncio
import csv
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import harness
from benchmarks.common.processes import pinned
from benchmarks.common.servers import HOST
from benchmarks.common.tools import InvalidRun
from benchmarks.features_parts import facts
from benchmarks.features_parts.bench import Bench
from benchmarks.harness import Figure

MODULE = "benchmarks.features_parts.per_key_part"
PEER = "redis-benchmark"
TICKS = (32, 64, 256)
WIDTH = facts.WIDTHS[0]
# In one call, and in a call for each entity.
FORMS = {"call": "one call", "calls": "a call each"}
TARGET = 0.5  # at most twice as long
WARM_UP_S = 0.3
COPY_PREFIX = b"copy:"
KILL_AFTER_S = 30.0
TICKS_S_MIN = 2_000  # what redis-benchmark's number of requests is first guessed from


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield a figure for each tick's size and form."""
    store = bench.store
    tool = shutil.which(PEER)
    if tool is None:
        bench.note(f"{PEER} is missing: apt-get install redis-tools")
    copies = asyncio.run(copy_rows(store.url))
    side = bench.side(sys.executable, MODULE, "headrace", store.url)
    for tick in TICKS:
        taken: dict[str, list[float]] = {name: [] for name in ([PEER] if tool else []) + [*FORMS]}
        for form in FORMS:
            side.ask(tick, form, WARM_UP_S)
        for name in harness.turns(list(taken), bench.effort.runs):
            if name == PEER:
                taken[name].append(_of_peer(bench, copies[:tick]))
                continue
            said = bench.ask(side, tick, name, bench.effort.run_s)
            if said["problem"]:
                raise InvalidRun(f"a tick of {tick} is answered wrongly: {said['problem']}")
            taken[name].append(said["us_a_key"])
        for form, title in FORMS.items():
            yield Figure(
                figure=f"a key in a tick of {tick}, {title}",
                unit="µs",
                runs=taken[form],
                peer=PEER,
                peer_runs=taken.get(PEER),
                target=TARGET,
            )


# The peer


async def copy_rows(url: str) -> list[str]:
    """Copy rows to keys of the same length that a command line can hold; return these."""
    from features.online.keys import ROW_PREFIX
    from features.online.store import OnlineStore

    store = OnlineStore(url)
    suffix = f":{facts.view_of(WIDTH)}:".encode()
    rows: list[bytes] = []
    cursor: bytes | None = None
    while cursor != b"0":
        cursor, found = await store.execute("SCAN", cursor or "0", "MATCH", ROW_PREFIX + b"*")
        rows += (key for key in found if suffix in key)
    rows = sorted(set(rows))[: max(TICKS)]
    values = await store.get_many(rows)
    copies = [name_of(place, len(key)) for place, key in enumerate(rows)]
    for name, value in zip(copies, values, strict=True):
        assert value is not None
        await store.execute("SET", name, value)
    if await store.get_many([name.encode() for name in copies]) != values:
        raise InvalidRun("the copied rows are not what was copied")
    await store.close()
    return copies


def name_of(place: int, length: int) -> str:
    """Return the name of a copy, of so many letters."""
    return COPY_PREFIX.decode() + str(place).zfill(length - len(COPY_PREFIX))


def _of_peer(bench: Bench, keys: list[str]) -> float:
    """Return redis-benchmark's µs a key."""
    rate = _rate(bench, keys, TICKS_S_MIN // 4)
    rate = _rate(bench, keys, max(int(rate * bench.effort.run_s), 1))
    return 1e6 / rate / len(keys)


def _rate(bench: Bench, keys: list[str], requests: int) -> float:
    command = [
        PEER, "-h", HOST, "-p", str(bench.store.port), "-c", "1", "-n", str(requests), "--csv",
        "MGET", *keys,
    ]  # fmt: skip
    found = subprocess.run(
        pinned([bench.cores.server], command), capture_output=True, text=True, check=False,
        timeout=bench.effort.run_s * 4 + KILL_AFTER_S,
    )  # fmt: skip
    return read_csv(found.stdout)


def read_csv(text: str) -> float:
    """Return the requests/s that redis-benchmark says as CSV. Raises InvalidRun."""
    lines = text.splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith('"test","rps"')), None)
    rows = [] if start is None else list(csv.DictReader(lines[start:]))
    try:
        return float(rows[-1]["rps"])
    except (LookupError, ValueError, TypeError):
        raise InvalidRun(f"{PEER} says: {text[-500:]!r}") from None


# In our process


def answer(_name: str, url: str) -> None:
    """For each line of stdin (size of a tick, form, seconds): read ticks, one after another."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_answer(url))


async def _answer(url: str) -> None:
    from benchmarks.features_parts import world
    from features import definitions_from_source
    from features.online.store import OnlineStore

    store = OnlineStore(url)
    definitions = definitions_from_source(world.source())
    reader = world.reader_of(definitions, facts.service_of(WIDTH), store)
    for line in sys.stdin:  # nothing else is to run between the runs
        tick, form, run_s = json.loads(line)
        print(json.dumps(await _timed(reader, tick, form, run_s)), flush=True)
    await store.close()


async def _timed(reader: Any, tick: int, form: str, run_s: float) -> dict[str, Any]:
    from benchmarks.features_parts import world

    ticks = facts.calls_of(8, tick)
    if form == "call":
        questions: list[Any] = ticks
        problems = [
            facts.wrong(await world.read(reader, WIDTH, entities), entities, WIDTH)
            for entities in ticks
        ]

        async def ask(entities: Any) -> Any:
            return await world.asked(reader, WIDTH, entities)

    else:
        from benchmarks.features_parts.ticks import Ticks

        door = Ticks(reader, WIDTH)
        questions = [door.calls(entities) for entities in ticks]
        problems = [
            facts.wrong(door.values(await door.ask(calls)), entities, WIDTH)
            for calls, entities in zip(questions, ticks, strict=True)
        ]
        ask = door.ask
    done, start_s = 0, time.perf_counter()
    for question in itertools.cycle(questions):
        await ask(question)
        done += 1
        if time.perf_counter() - start_s >= run_s:
            break
    took_s = time.perf_counter() - start_s
    problem = next(filter(None, problems), None)
    return {"us_a_key": took_s / done / tick * 1e6, "problem": problem, "checked": len(ticks)}
