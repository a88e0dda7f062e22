"""Features through the wire: closed loops against Feast's HTTP server and its gRPC server.

Every server has one core and reads the same store. Over gRPC each answer under load is held
against the one that was checked value by value before, as far as it comes in one frame; over HTTP,
and where an answer takes many frames, its length is, and all calls are checked before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from benchmarks.common import servers
from benchmarks.common.servers import HOST, Server
from benchmarks.common.tools import InvalidRun, h2load
from benchmarks.common.turns import values
from benchmarks.features_parts import calls, feast_servers
from benchmarks.features_parts.bench import Bench
from benchmarks.features_parts.calls import Form, GrpcForm, RestForm, Shape
from benchmarks.harness import Figure

CONCURRENCY = 64
SMALL = Shape(width=50, rows=1, bodies=64)
LARGE = Shape(width=250, rows=100, bodies=8)
CALLS_S_MAX = {SMALL: 8_000, LARGE: 300}  # of one connection: what a script is made for
SLOW_RUN_S = 6.0  # at least, for a peer whose calls wait for seconds when there are many
FRAME_BYTES = 16_384  # an answer of more comes in several frames, and is not compared
# (our form, Feast's form): how often as many.
TARGETS = {
    (SMALL, "gRPC", feast_servers.HTTP): 250.0,
    (SMALL, "gRPC", feast_servers.GRPC): 170.0,
    (SMALL, "JSON", feast_servers.HTTP): None,
    (LARGE, "gRPC", feast_servers.GRPC): 185.0,
    (LARGE, "JSON", feast_servers.GRPC): 65.0,
}


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield the figures of both shapes."""
    for shape in (SMALL, LARGE):
        yield from _compared(bench, shape)


def _compared(bench: Bench, shape: Shape) -> Iterator[Figure]:
    ours = bench.ours()
    loads: dict[str, Callable[[], float]] = {
        # As an application would ask: by name for one entity, in one piece for many.
        "gRPC": _load(bench, ours, calls.OurGrpc(shape, packed=shape is LARGE)),
        "JSON": _load(bench, ours, calls.OurRest(shape)),
    }
    asked = {peer for at, _, peer in TARGETS if at == shape}
    feast = bench.feast
    forms = {feast_servers.GRPC: calls.FeastGrpc, feast_servers.HTTP: calls.FeastRest}
    peers = {}
    for name in (name for name in forms if name in asked and feast is not None):
        server = bench.server(name)
        if server is not None:
            assert feast is not None
            peers[server] = _load(bench, server, forms[name](shape, feast))
    own: dict[str, list[float]] = {form: [] for form in loads}

    def of_ours() -> float:
        for form, load in loads.items():
            own[form].append(load())
        return own["gRPC"][-1]

    taken = bench.in_turns(bench.effort.runs, {ours: of_ours, **peers})
    for (at, form, peer), target in TARGETS.items():
        if at != shape:
            continue
        yield Figure(
            figure=f"{shape.title} through the wire, {form}, {CONCURRENCY} at once",
            unit="calls/s",
            runs=own[form],
            peer=peer,
            peer_runs=values(taken.get(peer), float),
            target=target,
            higher_is_better=True,
        )


def _load(bench: Bench, server: Server, form: Form) -> Callable[[], float]:
    """Return what runs a closed loop of these calls, and returns the calls/s."""
    if isinstance(form, GrpcForm):
        return partial(_grpc, bench, server, form)
    assert isinstance(form, RestForm)
    return partial(_rest, bench, server, form)


def _grpc(bench: Bench, server: Server, form: GrpcForm) -> float:
    replies = _checked(bench, server, form)
    answers = None
    if max(map(len, replies)) < FRAME_BYTES:
        answers = bench.folder / "answers.npy"
        np.save(answers, calls.endings(replies))
    run_s = _run_s(bench, server, form)
    count = int(CALLS_S_MAX[form.shape] * (run_s + 0.5))
    script, body_bytes = form.script(bench.folder, count)
    server.reply_bytes = 5 + _common_length(server, replies)
    result = bench.load.closed(server, (CONCURRENCY, 1), script, body_bytes, run_s, answers)
    bench.checked += result.checked
    _checked(bench, server, form)
    return result.requests_per_s


def _rest(bench: Bench, server: Server, form: RestForm) -> float:
    reply_bytes = len(_checked(bench, server, form)[0])
    body = bench.folder / "body.json"
    body.write_bytes(form.bodies[0])
    url = f"http://{HOST}:{server.ports.http}{form.path}"
    cpus = bench.cores.clients[-1:]
    shape = (CONCURRENCY, 0)
    run_s = _run_s(bench, server, form)
    run = h2load(url, shape, body, calls.JSON_HEADERS, cpus, run_s, reply_bytes)
    _checked(bench, server, form)
    return run.requests_per_s


def _run_s(bench: Bench, server: Server, form: Form) -> float:
    slow = form.shape == LARGE and server.name != servers.OURS
    return max(bench.effort.run_s, SLOW_RUN_S) if slow else bench.effort.run_s


def _checked(bench: Bench, server: Server, form: Form) -> list[bytes]:
    replies = form.replies(server)
    bench.checked += len(replies)
    return replies


def _common_length(server: Server, replies: list[bytes]) -> int:
    lengths = set(map(len, replies))
    if len(lengths) > 1:
        raise InvalidRun(f"{server.name}'s answers have {len(lengths)} lengths: they tell nothing")
    return lengths.pop()
