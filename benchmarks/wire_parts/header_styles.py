"""Request sequences of the load client: header blocks as real gRPC clients encode them.

The fields are those that the clients were recorded with (a deadline, a traceparent, a bearer
token), the values that differ from call to call are drawn anew.
"""

from __future__ import annotations

import base64
import json
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import harness
from benchmarks.common import frames

if TYPE_CHECKING:
    from benchmarks.wire_parts.bench import Bench

RECORDED = harness.ROOT / "tests" / "server" / "wire" / "recorded"
CONSTANT = "constant"
# Our server asks clients that index what never comes again to index nothing, after 16 calls; those
# that were under way by then are still as before.
CALLS_BEFORE_ASKED = 48
INDEXES_WELL = "grpcio"  # and is not asked
SCRIPTS = 2  # different sequences of a style, for the connections to share

Pair = tuple[bytes, bytes]


class Style(NamedTuple):
    """Whose encoder, and whether the bearer token is another one for each call."""

    client: str
    fresh_token: bool = False

    @property
    def title(self) -> str:
        """How the figures name it."""
        return f"{self.client}, fresh tokens" if self.fresh_token else self.client


STYLES = [
    Style(client, fresh_token)
    for fresh_token in (False, True)
    for client in ("grpcio", "grpc-java", "grpc-js")
]


def varying_blocks(style: Style, count: int, seed: int) -> Iterator[bytes]:
    """Yield the header blocks of a connection's calls, in order."""
    from tests.support.header_encoders import ENCODERS

    encoder = ENCODERS[style.client]()
    encode = encoder.encode
    draw = random.Random(seed)
    calls = recorded_calls(style.client)
    for number in range(count):
        if number == CALLS_BEFORE_ASKED and style.client != INDEXES_WELL:
            encoder.index_nothing()
        # Over and over, less the first: its deadline shows that the connection was opened.
        fields = calls[1 + number % (len(calls) - 1)]
        yield encode([(name, _fresh(name, value, draw, style)) for name, value in fields])


def recorded_calls(client: str) -> list[list[Pair]]:
    """Return the fields of the recorded calls that carry all three headers."""
    from hpack import Decoder

    recorded = json.loads((RECORDED / f"{client}.json").read_text())
    decoder = Decoder()
    return [
        [(bytes(name), bytes(value)) for name, value in decoder.decode(bytes.fromhex(b), raw=True)]
        for b in recorded["blocks"]["traced"]
    ]


def _fresh(name: bytes, value: bytes, draw: random.Random, style: Style) -> bytes:
    if name == b"traceparent":
        return b"00-%032x-%016x-01" % (draw.getrandbits(128), draw.getrandbits(64))
    if name == b"authorization" and style.fresh_token:
        start, _, signature = value.rpartition(b".")
        fresh = base64.urlsafe_b64encode(draw.randbytes(len(signature) * 3 // 4))
        return start + b"." + fresh.rstrip(b"=")
    if name == b"grpc-timeout" and value.endswith(b"u"):
        # As the client measures it: to the microsecond, since the call was made.
        return b"%du" % (int(value[:-1]) + draw.randrange(-100, 100))
    return value


def write_constant(bench: Bench, calls: int) -> list[Path]:
    """Write a sequence of calls whose headers are always the same; return its file."""
    file = bench.folder / f"{CONSTANT}.script"
    frames.write_script(file, frames.constant_blocks(calls), [bench.body.read_bytes()])
    return [file]


def write_varying(
    bench: Bench, styles: Sequence[Style], calls: int
) -> dict[Style | str, list[Path]]:
    """Write different sequences of so many calls of each style; return their files."""
    body = bench.body.read_bytes()
    files: dict[Style | str, list[Path]] = {}
    jobs = []
    # Spawned, as gRPC's threads in this process do not survive a fork.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for style in styles:
            files[style] = [
                bench.folder / f"{STYLES.index(style)}-{seed}.script" for seed in range(SCRIPTS)
            ]
            jobs += [
                pool.submit(_write, file, style, calls, seed, body)
                for seed, file in enumerate(files[style])
            ]
        for job in jobs:
            job.result()
    return files


def _write(file: Path, style: Style, calls: int, seed: int, body: bytes) -> None:
    frames.write_script(file, varying_blocks(style, calls, seed), [body])
