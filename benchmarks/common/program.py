"""A benchmark of several parts as a program: run those that are asked for, publish the figures."""

from __future__ import annotations

import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import harness
from benchmarks.common.processes import Cores, StartError, cores
from benchmarks.common.tools import InvalidRun, missing_tools
from benchmarks.common.turns import Contest
from benchmarks.harness import Figure

IDLE_LOAD_MAX = 0.5
_C = TypeVar("_C", bound=Contest)
Parts = Mapping[str, Callable[[_C], Iterator[Figure]]]


def run(
    name: str,
    description: str | None,
    parts: Parts[_C],
    packages: Sequence[str],
    prepared: Callable[[bool, Cores, Path], AbstractContextManager[_C]],
) -> int:
    """Run a benchmark; 1 when it cannot run, or when calls to ours failed.

    `prepared` makes the contest from: whether it is to be quick, the cores, a scratch folder.
    """
    options = harness.arguments(description, tuple(parts))
    if missing := missing_tools():
        print("\n".join(missing), file=sys.stderr)
        return 1
    # An exit like any other: whoever ends us by SIGTERM ends the servers with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # Ten thousand connections are as many open files, on both sides.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    machine = harness.machine()
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            prepared(options.quick, cores(), Path(folder)) as contest,
        ):
            if machine["load_1m"] > IDLE_LOAD_MAX:
                contest.note(f"something else runs on this machine (load {machine['load_1m']})")
            figures, valid = _measure(contest, parts, options.only)
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    document: dict[str, Any] = harness.document(
        name,
        machine,
        harness.versions(packages, list(contest.pythons.items())),
        figures,
        contest.notes,
    )
    harness.publish(document, figures, options.json)
    return 0 if valid else 1


def _measure(contest: _C, parts: Parts[_C], asked: Sequence[str]) -> tuple[list[Figure], bool]:
    """Run the parts; return their figures, and whether every run of ours was valid."""
    figures: list[Figure] = []
    valid = True
    for part in (name for name in parts if name in asked):
        start_s = time.monotonic()
        try:
            # One by one: those before a run that is invalid stand.
            for figure in parts[part](contest):
                figures.append(figure)  # noqa: PERF402
        except (InvalidRun, OSError) as error:
            valid = False
            contest.note(f"{part} is invalid and cut short: {error}")
            contest.ours().restart()
        print(f"{part}: {time.monotonic() - start_s:.0f} s", file=sys.stderr)
    return figures, valid
