"""Headers that vary per call, as real clients encode them: how much throughput is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks.common import clients
from benchmarks.common.clients import Clients, Closed
from benchmarks.harness import Figure
from benchmarks.wire_parts.bench import Bench
from benchmarks.wire_parts.header_styles import (
    CONSTANT,
    STYLES,
    Style,
    write_constant,
    write_varying,
)

SHAPES = ((4, 8), (8, 32), (64, 1))
# Tokens that differ from call to call come from gateways alone: shown once, without a target.
FRESH_TOKEN_SHAPE = (8, 32)
KEPT_TARGET = 0.7
RUN_S_MAX = 1.0  # the requests are encoded beforehand, and fill memory
CLIENT_SHARE_MAX = 0.9
SPARE = 1.1  # how many more requests are prepared than the first run would need
FIRST_CALLS = 200_000


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield a figure for each shape and style of client."""
    with clients.started(bench.cores.clients) as load:
        for shape in SHAPES:
            yield from _of_shape(bench, load, shape)


def _of_shape(bench: Bench, load: Clients, shape: tuple[int, int]) -> Iterator[Figure]:
    server = bench.ours()
    run_s = min(bench.effort.run_s, RUN_S_MAX)

    def run(scripts: Sequence[Path]) -> Closed:
        return load.closed(server, shape, scripts, bench.body.stat().st_size, run_s)

    rate = run(write_constant(bench, FIRST_CALLS)).requests_per_s
    calls = int(rate / shape[0] * run_s * 4 / 3 * SPARE) + 100
    styles = [s for s in STYLES if not s.fresh_token or shape == FRESH_TOKEN_SHAPE]
    # It is the faster, and never to be the first that runs out.
    constant = write_constant(bench, 2 * calls)
    scripts: dict[Style | str, list[Path]] = {CONSTANT: constant}
    scripts |= write_varying(bench, styles, calls)
    taken: dict[Style | str, list[Closed]] = {name: [] for name in scripts}
    for number in range(bench.effort.runs):
        for name in list(scripts)[:: -1 if number % 2 else 1]:
            taken[name].append(run(scripts[name]))
    title = f"{shape[0]}×{shape[1]}"
    _note_cores(bench, title, taken[CONSTANT])
    for style in styles:
        yield Figure(
            figure=f"headers of {style.title}, {title}",
            unit="requests/s",
            runs=[result.requests_per_s for result in taken[style]],
            peer="constant",
            peer_runs=[result.requests_per_s for result in taken[CONSTANT]],
            target=None if style.fresh_token else KEPT_TARGET,
            higher_is_better=True,
        )
    for file in (path for paths in scripts.values() for path in paths):
        file.unlink()
        file.with_suffix(".npy").unlink()


def _note_cores(bench: Bench, title: str, runs: Sequence[Closed]) -> None:
    """Say who was the limit: the share is right only where it was the server."""
    server_share = median(run.server_share for run in runs)
    client_share = median(run.client_share for run in runs)
    text = f"headers {title}: server's core {server_share:.0%}, busiest client {client_share:.0%}"
    if client_share > CLIENT_SHARE_MAX:
        text += "; the clients were the limit, what is lost may be more"
    bench.note(text)
