"""Bytes an entity takes in the store: MEMORY USAGE of all its keys, ours against Feast's layout.

Both are in the same store; ours are told by their prefix. What is there once (the checkpoint, the
log of events) is no entity's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from benchmarks.common.tools import InvalidRun
from benchmarks.features_parts import facts
from benchmarks.features_parts.bench import Bench
from benchmarks.harness import Figure
from features.online.keys import ROW_PREFIX
from features.online.store import OnlineStore

FEAST_LAYOUT = "Feast's layout"
TARGET = 1 / 0.52
_SCAN = 1_000
OURS_PREFIX = b"hr:"


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield the bytes an entity of each width takes."""
    feast = bench.feast
    used = asyncio.run(usage(bench.store.url))
    for width in facts.WIDTHS:
        suffix = f":{facts.view_of(width)}:".encode()
        ours = [size for key, size in used.items() if key.startswith(ROW_PREFIX) and suffix in key]
        join_key = facts.key_of(width).encode()
        theirs = [
            size
            for key, size in used.items()
            if join_key in key and not key.startswith(OURS_PREFIX)
        ]
        for name, found in (("ours", ours), ("Feast's", theirs)):
            if len(found) != facts.ENTITIES and not (feast is None and found is theirs):
                raise InvalidRun(f"{len(found)} keys of {facts.ENTITIES} entities are {name}")
        yield Figure(
            figure=f"an entity of {width} floats in the store",
            unit="bytes",
            runs=[sum(ours) / facts.ENTITIES],
            peer=FEAST_LAYOUT,
            peer_runs=None if feast is None else [sum(theirs) / facts.ENTITIES],
            target=TARGET,
        )


async def usage(url: str) -> dict[bytes, int]:
    """Return what every key of the store takes, by key."""
    store = OnlineStore(url)
    keys: set[bytes] = set()
    cursor: bytes | None = None
    while cursor != b"0":
        cursor, found = await store.execute("SCAN", cursor or "0", "COUNT", _SCAN)
        keys.update(found)
    sizes: dict[bytes, int] = {}
    ordered = sorted(keys)
    for start in range(0, len(ordered), _SCAN):
        part = ordered[start : start + _SCAN]
        asked = (store.execute("MEMORY", "USAGE", key, "SAMPLES", "0") for key in part)
        sizes |= zip(part, await asyncio.gather(*asked), strict=True)
    await store.close()
    return sizes
