"""REST throughput: h2load over HTTP/1.1 keep-alive connections, against uvicorn and FastAPI."""

from __future__ import annotations

import json
import struct
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.common import model, servers
from benchmarks.common.servers import HOST, Server
from benchmarks.common.tools import InvalidRun, Run, h2load
from benchmarks.common.turns import present, values
from benchmarks.harness import Figure
from benchmarks.wire_parts.bench import Bench

CONNECTIONS = (16, 64)
BUSY_SHARE = 0.95
JSON, BINARY = "JSON", "binary"
TARGETS = {JSON: 3.0, BINARY: 10.0}


class Form(NamedTuple):
    """One way to send the row."""

    name: str
    body: Path
    headers: dict[str, str]

    def url(self, server: Server) -> str:
        """Return where a server takes it: FastAPI's app has a path for each form."""
        own_path = self.name == BINARY and server.name == servers.FASTAPI
        prefix = "/binary" if own_path else ""
        return f"http://{HOST}:{server.ports.http}{prefix}{model.REST_PATH}"


def forms(bench: Bench) -> list[Form]:
    """Write both bodies."""
    json_file, binary_file = bench.folder / "body.json", bench.folder / "body.binary"
    json_file.write_bytes(model.json_body(bench.wanted.row))
    body, length = model.binary_body(bench.wanted.row)
    binary_file.write_bytes(body)
    binary = {"Content-Type": "application/octet-stream", model.LENGTH_HEADER: str(length)}
    return [
        Form(JSON, json_file, {"Content-Type": "application/json"}),
        Form(BINARY, binary_file, binary),
    ]


def check(server: Server, form: Form, wanted: float) -> int:
    """Make one real call; return its length. Raises InvalidRun when the answer is not right."""
    request = urllib.request.Request(
        form.url(server), data=form.body.read_bytes(), headers=form.headers
    )
    try:
        with urllib.request.urlopen(request, timeout=servers.CALL_TIMEOUT_S) as reply:
            length, content = reply.headers.get(model.LENGTH_HEADER), reply.read()
        model.check(_answer(content, length), wanted, server.name)
    except (OSError, ValueError, LookupError, struct.error) as error:
        raise InvalidRun(f"{server.name}, {form.name}: {error}") from error
    return len(content)


def load(bench: Bench, server: Server, form: Form, connections: int, reply_bytes: int) -> Run:
    """Load one server from one core."""
    return h2load(
        form.url(server), (connections, 0), form.body, form.headers, bench.cores.clients[-1:],
        bench.effort.run_s, reply_bytes,
    )  # fmt: skip


def _answer(content: bytes, length: str | None) -> float:
    if length is not None:
        (value,) = struct.unpack("<f", content[int(length) :])
        return float(value)
    document: dict[str, Any] = json.loads(content)
    return float(document["outputs"][0]["data"][0])


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield a figure for each body and number of connections."""
    contestants = present(bench.ours(), bench.server(servers.FASTAPI))
    peers_json: dict[int, list[Run] | None] = {}
    for form in forms(bench):
        sizes = {server: check(server, form, bench.wanted.answer) for server in contestants}
        for connections in CONNECTIONS:
            loads = {
                server: partial(load, bench, server, form, connections, size)
                for server, size in sizes.items()
            }
            taken = bench.in_turns(bench.effort.runs, loads)
            own, peers = taken[servers.OURS], taken.get(servers.FASTAPI)
            assert own is not None
            title = f"REST {form.name}, {connections}×1"
            if median(run.client_share for run in own) > BUSY_SHARE:
                bench.note(f"{title}: h2load's core was full, ours may be faster")
            yield _figure(title, own, peers, TARGETS[form.name])
            if form.name == JSON:
                peers_json[connections] = peers
            else:
                against = f"{title} (peer: JSON)"
                yield _figure(against, own, peers_json[connections], None)


def _figure(title: str, own: list[Run], peers: list[Run] | None, target: float | None) -> Figure:
    return Figure(
        figure=title,
        unit="requests/s",
        runs=[run.requests_per_s for run in own],
        peer=servers.FASTAPI,
        peer_runs=values(peers, lambda run: run.requests_per_s),
        target=target,
        higher_is_better=True,
    )
