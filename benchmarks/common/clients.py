"""Load clients on cores of their own, run together and their results put together."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import harness
from benchmarks.common import frames
from benchmarks.common.processes import pinned
from benchmarks.common.servers import Server, cpu_share
from benchmarks.common.tools import InvalidRun

MODULE = "benchmarks.common.load_client"


class Closed(NamedTuple):
    """What a closed loop measured, and the shares of their cores that the busiest client and the
    server took.
    """

    requests_per_s: float
    client_share: float
    server_share: float
    checked: int  # answers, all of them right


@dataclass(frozen=True)
class Open:
    """What an open loop measured: every latency, in order; how late its client sent (p99).

    `failed` calls had an error or no answer: they count with the whole time that was left.
    Where answers are checked, `right_us` has the latencies of those that were right.
    """

    latencies_us: list[float]
    failed: int
    late_send_us: float
    offered: int
    right_us: list[float]

    def quantile(self, share: float) -> float:
        """Return the latency that this share of the calls stayed within."""
        place = min(int(share * len(self.latencies_us)), len(self.latencies_us) - 1)
        return self.latencies_us[place]


class Clients:
    """One load client for each core that is not the server's."""

    def __init__(self, cpus: Sequence[int]) -> None:
        self._children = [
            subprocess.Popen(
                pinned([cpu], [sys.executable, "-m", MODULE]),
                cwd=harness.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for cpu in cpus
        ]  # fmt: skip

    def close(self) -> None:
        """End them: they end when their stdin does."""
        for child in self._children:
            child.communicate()

    def closed(
        self,
        server: Server,
        shape: tuple[int, int],
        scripts: Sequence[Path],
        body_bytes: int,
        run_s: float,
        answers: Path | None = None,
    ) -> Closed:
        """Run a closed loop of `shape` (connections, streams each). Raises InvalidRun.

        With `answers` (the values that answer each body) an answer that is not right is one, too.
        """
        connections, streams = shape
        count = min(len(self._children), connections)
        command = {
            "loop": "closed", "port": server.ports.grpc, "scripts": [str(s) for s in scripts],
            "body_bytes": body_bytes, "streams": streams, "warm_up_s": min(run_s / 3, 0.5),
            "run_s": run_s,
        } | _checking(answers)  # fmt: skip
        shares = [connections // count + (i < connections % count) for i in range(count)]
        results, server_share = cpu_share(
            server, lambda: self._ask([command | {"connections": share} for share in shares])
        )
        for answer in results:
            # A reply that straddles the start or the end of the run is half counted.
            slack = shape[0] * shape[1]
            surplus = answer["data_bytes"] / server.reply_bytes - answer["replies"]
            if answer["replies"] == 0 or answer["resets"] or abs(surplus) > slack:
                raise InvalidRun(
                    f"{answer['replies']} replies with {answer['data_bytes']} bytes, "
                    f"{answer['resets']} resets: calls failed"
                )
            if answers is not None:
                _raise_for(answer["verdicts"])
            if answer["exhausted"] and answer["wall_s"] < run_s / 2:
                raise InvalidRun("the prepared requests did not last for half of the run")
        return Closed(
            sum(answer["replies"] / answer["wall_s"] for answer in results),
            max(answer["client_share"] for answer in results),
            server_share,
            sum(answer["verdicts"][frames.RIGHT] for answer in results),
        )

    def open(
        self,
        server: Server,
        connections: int,
        scripts: Sequence[Path],
        body_bytes: int,
        rate_per_s: float,
        run_s: float,
        seed: int,
        answers: Path | None = None,
    ) -> Open:
        """Run an open loop from one client. Raises InvalidRun, for a wrong answer, too."""
        command = {
            "loop": "open", "port": server.ports.grpc, "scripts": [str(s) for s in scripts],
            "body_bytes": body_bytes, "connections": connections, "rate_per_s": rate_per_s,
            "warm_up_s": min(run_s / 4, 1.0), "run_s": run_s, "seed": seed,
        } | _checking(answers)  # fmt: skip
        (answer,) = self._ask([command])
        if answers is not None:
            _raise_for(answer["verdicts"])
        good, rest = divmod(answer["data_bytes"], server.reply_bytes)
        # Without an answer nothing is measured, unless the server said no to each.
        if rest or not (good or answer["replies"]):
            raise InvalidRun(f"answers of {answer['data_bytes']} bytes: not those of the check")
        errors = answer["replies"] - good
        latencies = sorted(answer["latencies_us"])
        # Which ones were errors is not known; an error is fast, so that they count as the slowest.
        latencies = latencies[errors:] + [answer["longest_us"]] * errors
        return Open(
            latencies,
            errors + answer["unanswered"],
            answer["late_send_us"],
            answer["offered"],
            sorted(answer["right_us"]),
        )

    def _ask(self, commands: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        children = self._children[: len(commands)]
        for child, command in zip(children, commands, strict=True):
            assert child.stdin is not None
            child.stdin.write(json.dumps(command) + "\n")
            child.stdin.flush()
        answers = []
        for child in children:
            assert child.stdout is not None
            line = child.stdout.readline()
            if not line:
                raise RuntimeError("a load client ended; what it said is above")
            answers.append(json.loads(line))
        for answer in answers:
            if "problem" in answer:
                raise InvalidRun(answer["problem"])
        return answers


def _checking(answers: Path | None) -> dict[str, str]:
    return {} if answers is None else {"answers": str(answers)}


def _raise_for(verdicts: Sequence[int]) -> None:
    """Raise InvalidRun where an answer was wrong, or none could be looked at."""
    right, wrong, cut = (verdicts[v] for v in (frames.RIGHT, frames.WRONG, frames.CUT))
    if wrong or cut > right:
        raise InvalidRun(f"{right} answers are right, {wrong} wrong, {cut} not to be looked at")


@contextlib.contextmanager
def started(cpus: Sequence[int]) -> Iterator[Clients]:
    """Start load clients on these cores, and end them."""
    clients = Clients(cpus)
    try:
        yield clients
    finally:
        clients.close()
