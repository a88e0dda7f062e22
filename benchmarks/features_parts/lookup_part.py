"""What a lookup adds to a prediction: p99 of Predict by an entity's id, over that of ModelInfer of
the same version with the same features in the request.

Arrivals are on a schedule (Poisson), the same for both: half of what Predict can answer, and a
fifth of it. Every answer is held against onnxruntime's. The client never sleeps, so where there are
only two cores the store moves to the server's.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks import harness
from benchmarks.common import frames, model
from benchmarks.common.clients import Open
from benchmarks.common.servers import CALL_TIMEOUT_S, HOST, Server
from benchmarks.common.tools import InvalidRun
from benchmarks.features_parts import facts, released
from benchmarks.features_parts.bench import Bench
from benchmarks.harness import Figure
from features import Column
from server.pb import headrace_pb2 as pb
from server.protocol.columns import messages_of_table

PREDICT_PATH = "/headrace.v1.Predictions/Predict"
CONNECTIONS = 16
BODIES = 64
PEAK_SHAPE = (64, 1)
PEAK_RUN_S = 1.0
PEAK_CALLS_S = 2_000  # of one of its connections, at most
WIDTH = facts.WIDTHS[0]
# (share of the peak, ms that the p99 may grow by).
LOADS = ((0.5, 0.4), (0.2, 0.7))


@dataclass(frozen=True)
class Kind:
    """One way to ask: its calls, and how many bytes an answer ends with that are compared."""

    name: str
    path: str
    messages: list[bytes]
    compared_bytes: int
    endings: list[bytes] = field(default_factory=list)

    def value(self, reply: bytes) -> float:
        """Return what the model says. Raises ValueError or LookupError."""
        if self.path == PREDICT_PATH:
            return float(pb.PredictReply.FromString(reply).outputs[0])
        return model.grpc_answer(reply)


def kinds() -> tuple[Kind, Kind]:
    """Return Predict, which looks up, and ModelInfer, which is given the features."""
    key = facts.key_of(WIDTH)
    users = [call[0] for call in facts.calls_of(BODIES, 1)]
    asked = [
        pb.PredictRequest(
            model=released.MODEL, inputs=messages_of_table({key: Column(np.array([user]))})
        ).SerializeToString()
        for user in users
    ]
    given = [model.grpc_message(row[None], released.MODEL) for row in _rows(users)]
    # Behind the one output of Predict stand four bytes: its width, and the plan's number.
    return Kind("Predict", PREDICT_PATH, asked, 8), Kind("ModelInfer", model.GRPC_PATH, given, 4)


def _rows(users: list[int]) -> Any:
    return facts.values_of(WIDTH)[np.array(users) - facts.FIRST_ID].astype(np.float32)


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield what is added at each load."""
    server = bench.ours()
    with _store_off_the_client(bench):
        pair = kinds()
        for kind in pair:
            server.reply_bytes = _check(bench, server, kind)
        predict, infer = pair
        peak = _peak(bench, server, predict)
        for share, limit_ms in LOADS:
            taken: dict[str, list[Open]] = {kind.name: [] for kind in pair}
            loads = [partial(_open, bench, server, kind, peak * share) for kind in (predict, infer)]
            for load in harness.turns(loads, bench.effort.open_runs):
                name = load.args[2].name
                taken[name].append(load(len(taken[name])))
            title = f"{share:.0%} load ({peak * share:,.0f}/s)"
            for name, runs in taken.items():
                bench.note_trouble(runs, f"{name} at {title}")
            yield from _figures(title, taken[predict.name], taken[infer.name], limit_ms)


def _figures(
    title: str, predict: list[Open], infer: list[Open], limit_ms: float
) -> Iterator[Figure]:
    for name, share, limit in (("p50", 0.5, None), ("p99", 0.99, limit_ms)):
        pairs = [
            (looked.quantile(share) / 1e3, given.quantile(share) / 1e3)
            for looked, given in zip(predict, infer, strict=True)
        ]
        yield Figure(
            figure=f"{name} that a lookup adds to a prediction, {title}",
            unit="ms",
            runs=[looked - given for looked, given in pairs],
            peer=None,
            peer_runs=None,
            limit=limit,
        )
        yield Figure(
            figure=f"{name} of Predict, and with the features given, {title}",
            unit="ms",
            runs=[looked for looked, _ in pairs],
            peer="ModelInfer",
            peer_runs=[given for _, given in pairs],
        )


def _check(bench: Bench, server: Server, kind: Kind) -> int:
    """Make every call once; return an answer's bytes in DATA. Raises InvalidRun."""
    users = [call[0] for call in facts.calls_of(BODIES, 1)]
    wanted = released.scored(released.network(), _rows(users)).ravel().tolist()
    kind.endings.clear()
    lengths = set()
    with grpc.insecure_channel(f"{HOST}:{server.ports.grpc}") as channel:
        call = channel.unary_unary(kind.path, None, None)
        for message, value in zip(kind.messages, wanted, strict=True):
            try:
                reply = call(message, timeout=CALL_TIMEOUT_S, wait_for_ready=True)
                model.check(kind.value(reply), value, kind.name)
            except (grpc.RpcError, ValueError, LookupError) as error:
                raise InvalidRun(f"{kind.name} fails its first calls: {error}") from error
            lengths.add(5 + len(reply))
            kind.endings.append(reply[-kind.compared_bytes :])
    if len(lengths) > 1:
        raise InvalidRun(f"{kind.name}'s answers have {len(lengths)} lengths: they tell nothing")
    bench.checked += len(wanted)
    return lengths.pop()


def _prepared(bench: Bench, kind: Kind, calls: int) -> tuple[list[Path], int, Path]:
    """Write a connection's calls and their answers; return both, and a body's bytes."""
    script, answers = (
        bench.folder / f"{kind.name}.script",
        bench.folder / f"{kind.name}-answers.npy",
    )
    bodies = [struct.pack(">BI", 0, len(each)) + each for each in kind.messages]
    frames.write_script(script, frames.constant_blocks(calls, path=kind.path), bodies)
    np.save(answers, np.array([np.frombuffer(each, np.float32) for each in kind.endings]))
    return [script], max(map(len, bodies)), answers


def _peak(bench: Bench, server: Server, kind: Kind) -> float:
    """Return the most calls/s that are answered in a closed loop."""
    server.reply_bytes = _check(bench, server, kind)
    script, body_bytes, answers = _prepared(bench, kind, int(PEAK_CALLS_S * PEAK_RUN_S * 2))
    load = partial(bench.load.closed, server, PEAK_SHAPE, script, body_bytes, PEAK_RUN_S, answers)
    load()
    return load().requests_per_s


def _open(bench: Bench, server: Server, kind: Kind, rate: float, seed: int) -> Open:
    server.reply_bytes = _check(bench, server, kind)
    run_s = bench.effort.open_run_s
    calls = int(rate * (run_s + 1.0) / CONNECTIONS * 1.1) + 100
    script, body_bytes, answers = _prepared(bench, kind, calls)
    result = bench.load.open(
        server, CONNECTIONS, script, body_bytes, rate, run_s, seed, answers
    )  # fmt: skip
    bench.checked += len(result.right_us)
    return result


@contextlib.contextmanager
def _store_off_the_client(bench: Bench) -> Iterator[None]:
    """Keep the store off the core of a client that never sleeps."""
    if bench.store_cpu not in bench.cores.clients[-1:]:
        yield
        return
    bench.note("lookup: there are two cores, so the store shares the server's")
    _move(bench, bench.cores.server)
    try:
        yield
    finally:
        _move(bench, bench.store_cpu)


def _move(bench: Bench, cpu: int) -> None:
    for pid in bench.store.process.pids():
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {cpu})
