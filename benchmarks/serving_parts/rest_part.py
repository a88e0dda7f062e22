"""REST: JSON over HTTP/1.1 keep-alive connections (h2load), against BentoML."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.common import model, servers
from benchmarks.common.servers import HOST, Server
from benchmarks.common.tools import InvalidRun, Run, h2load
from benchmarks.common.turns import present, values
from benchmarks.harness import Figure
from benchmarks.serving_parts import peers, workloads
from benchmarks.serving_parts.bench import Bench
from benchmarks.serving_parts.closed_part import CONCURRENCIES, SMALL_TARGET
from benchmarks.serving_parts.workloads import Workload

BENTOML_RUN_S = 1.0  # at least: its calls wait most of a second when there are many
HEADERS = {"Content-Type": "application/json"}


class Form(NamedTuple):
    """How one server takes the first rows of a workload."""

    path: str
    body: Path


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield a figure for each model (one row a call) and number of connections."""
    contestants = present(bench.ours(), bench.server(peers.BENTOML))
    for work in (each for each in bench.shapes if each.rows == 1):
        forms = {server: _form(bench, server, work) for server in contestants}
        for concurrency in CONCURRENCIES:
            loads = {
                server: partial(_load, bench, server, work, form, concurrency)
                for server, form in forms.items()
            }
            taken = bench.in_turns(bench.effort.runs, loads)
            own = taken[servers.OURS]
            assert own is not None
            yield Figure(
                figure=f"{work.title} as JSON, {concurrency} at once",
                unit="requests/s",
                runs=[run.requests_per_s for run in own],
                peer=peers.BENTOML,
                peer_runs=values(taken.get(peers.BENTOML), lambda run: run.requests_per_s),
                target=SMALL_TARGET,
                higher_is_better=True,
            )


def _form(bench: Bench, server: Server, work: Workload) -> Form:
    body = bench.folder / f"{server.name}-{work.model}.json"
    if server.name == servers.OURS:
        body.write_bytes(model.json_body(work.first))
        return Form(f"/v2/models/{work.model}/infer", body)
    body.write_bytes(workloads.bento_body(work))
    return Form(f"/{work.model}", body)


def _load(bench: Bench, server: Server, work: Workload, form: Form, connections: int) -> Run:
    """Load a server; the answer is checked before and after the run."""
    reply_bytes = _check(bench, server, work, form)
    url = f"http://{HOST}:{server.ports.http}{form.path}"
    run_s = bench.effort.run_s
    if server.name == peers.BENTOML:
        run_s = max(run_s, BENTOML_RUN_S)
    cpus = bench.cores.clients[-1:]
    run = h2load(url, (connections, 0), form.body, HEADERS, cpus, run_s, reply_bytes)
    _check(bench, server, work, form)
    return run


def _check(bench: Bench, server: Server, work: Workload, form: Form) -> int:
    """Make one call; return its length. Raises InvalidRun when the answer is not right."""
    request = urllib.request.Request(
        f"http://{HOST}:{server.ports.http}{form.path}", form.body.read_bytes(), HEADERS
    )
    try:
        with urllib.request.urlopen(request, timeout=servers.CALL_TIMEOUT_S) as reply:
            content = reply.read()
        got = workloads.answers_of(content)
    except (OSError, ValueError, LookupError) as error:
        raise InvalidRun(f"{server.name}, {work.title} as JSON: {error}") from error
    if not np.allclose(got, work.wanted()[0], atol=model.TOLERANCE):
        raise InvalidRun(f"{server.name} answers {work.title} as JSON otherwise than onnxruntime")
    bench.checked += 1
    return len(content)
