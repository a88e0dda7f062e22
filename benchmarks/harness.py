"""What every benchmark shares: its command line, its peers' environments and its JSON document.

Only the standard library is imported at the top: a benchmark's module also runs inside its peer's
environment, which has nothing of ours installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

_T = TypeVar("_T")
ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".peers"
INSTALL_TIMEOUT_S = 300.0
MISSING = "missing"
# More than any table takes: where there is no terminal, nothing has to be cut.
LOG_COLUMNS = 300


@dataclass(frozen=True)
class Peer:
    """Something that we compare with: its name and what pip installs, each as `name==version`."""

    name: str
    requirements: tuple[str, ...]

    def __post_init__(self) -> None:
        assert all("==" in item for item in self.requirements), "a peer's versions are pinned"


@dataclass(frozen=True)
class Figure:
    """One thing measured in several runs, on both sides where there is a peer.

    `peer` is None where there is nobody to compare with, `peer_runs` is None when the peer is
    missing. Run i of ours and run i of the peer's were taken next to each other. `target` bounds
    the ratio, `limit` our own value: at most, or at least where higher is better.
    """

    figure: str
    unit: str
    runs: Sequence[float]
    peer: str | None
    peer_runs: Sequence[float] | None
    target: float | None = None
    higher_is_better: bool = False
    limit: float | None = None

    @property
    def value(self) -> float:
        """The median of our runs."""
        return median(self.runs)

    @property
    def peer_value(self) -> float | None:
        """The median of the peer's runs."""
        return None if self.peer_runs is None else median(self.peer_runs)

    @property
    def ratio(self) -> float | None:
        """How many times as good as the peer we are: above one, ours is the better."""
        return None if self.peer_value is None else self._ratio(self.value, self.peer_value)

    @property
    def ratio_range(self) -> tuple[float, float] | None:
        """The lowest and the highest ratio of neighbouring runs."""
        if self.peer_runs is None:
            return None
        pairs = zip(self.runs, self.peer_runs, strict=True)
        ratios = [ratio for pair in pairs if (ratio := self._ratio(*pair)) is not None]
        return (min(ratios), max(ratios)) if ratios else None

    @property
    def met(self) -> bool | None:
        """Whether target and limit are reached; None where there is nothing to tell it by."""
        if self.target is not None and self.ratio is None:
            return None
        reached = []
        if self.target is not None and self.ratio is not None:
            reached.append(self.ratio >= self.target)
        if self.limit is not None:
            within = self.value >= self.limit if self.higher_is_better else self.value <= self.limit
            reached.append(within)
        return all(reached) if reached else None

    def _ratio(self, ours: float, peers: float) -> float | None:
        """Return the ratio; None where it has no end: the peer did nothing at all, say."""
        better, worse = (ours, peers) if self.higher_is_better else (peers, ours)
        return better / worse if worse else None

    def document(self) -> dict[str, Any]:
        """Return the figure as the document holds it, to four digits."""
        low, high = self.ratio_range or (None, None)
        return {
            "figure": self.figure,
            "unit": self.unit,
            "value": _digits(self.value),
            "peer": self.peer,
            "peer_value": _digits(self.peer_value),
            "ratio": _digits(self.ratio),
            "target": self.target,
            "met": self.met,
            "better": "higher" if self.higher_is_better else "lower",
            "ratio_low": _digits(low),
            "ratio_high": _digits(high),
            "limit": self.limit,
        }


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def arguments(description: str | None, parts: Sequence[str] = ()) -> argparse.Namespace:
    """Read the command line that all benchmarks share: `.quick` and `.json` (a path or None).

    A benchmark of several parts has `.only`, too: those that are asked for, else all.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer runs: under two minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the document to FILE")
    if parts:
        parser.add_argument(
            "--only", nargs="+", choices=parts, default=list(parts), help="these parts alone"
        )
    return parser.parse_args()


# Peers


def peer_python(peer: Peer, folder: Path = PEERS) -> Path | None:
    """Return the Python of the peer's own environment, made on first use; None: it is missing.

    What pip finds wrong goes to stderr.
    """
    wanted = "\n".join((platform.python_version(), *peer.requirements))
    environment = folder / f"{peer.name}-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"
    python = environment / "bin" / "python"
    # Written last: an environment without it was left half made.
    stamp = environment / "installed"
    if stamp.exists():
        return python
    print(f"making an environment for {' '.join(peer.requirements)}", file=sys.stderr)
    # Without a pip of its own, which takes seconds: ours installs into it.
    venv.create(environment, clear=True, symlinks=True, with_pip=False)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python))
    install = ("install", "--quiet", "--retries", "1", *peer.requirements)
    try:
        subprocess.run(
            [*pip, *install], check=True, stdout=subprocess.DEVNULL, timeout=INSTALL_TIMEOUT_S
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        print(f"{peer.name} cannot be installed: reported as missing", file=sys.stderr)
        return None
    stamp.touch()
    return python


# The runs


def turns(sides: Sequence[_T], runs: int) -> Iterator[_T]:
    """Yield all sides, `runs` times. Who goes first alternates: what drifts on the machine meets
    all alike.
    """
    for number in range(runs):
        yield from sides[:: -1 if number % 2 else 1]


class Side:
    """A process that runs a benchmark's `answer` in the environment of `python`.

    `answer` gets `name` and `source`; it answers each line of JSON on stdin with another one, until
    stdin ends. With `cpu` it runs on that core alone.
    """

    def __init__(
        self, python: Path | str, module: str, name: str, source: str, cpu: int | None = None
    ) -> None:
        code = f"import sys; from {module} import answer; answer(*sys.argv[1:])"
        pinned = [] if cpu is None else ["taskset", "-c", str(cpu)]
        self._name = name
        self._process = subprocess.Popen(
            [*pinned, str(python), "-c", code, name, source],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, *wanted: Any) -> dict[str, Any]:
        """Make one run of what is wanted; return what it says."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self._name} ended; what it said is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


# The document


def machine() -> dict[str, Any]:
    """Return what a reader must know of this machine to read the figures."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        # Above zero before a benchmark starts: somebody else works here, too.
        "load_1m": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def versions(packages: Sequence[str], peers: Sequence[tuple[Peer, Path | None]]) -> dict[str, str]:
    """Return the versions of Python, of ours, of `packages` and of the peers (or "missing")."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {
        "python": platform.python_version(),
        "headrace": metadata.version("headrace"),
        # Empty outside of a clone.
        "commit": described.stdout.strip(),
        **{name: metadata.version(name) for name in packages},
        **{p.name: " ".join(p.requirements) if python else MISSING for p, python in peers},
    }


def document(
    name: str,
    machine_facts: dict[str, Any],
    version_of: dict[str, str],
    figures: Sequence[Figure],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the benchmark's document, dated now. `machine_facts` are from before its start.

    `notes` say what a reader must know besides: a peer that crashed, a part that was skipped.
    """
    return {
        "name": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine_facts,
        "versions": version_of,
        "figures": [figure.document() for figure in figures],
        **({"notes": list(notes)} if notes else {}),
    }


def publish(document: dict[str, Any], figures: Sequence[Figure], file: Path | None) -> None:
    """Print the table to stderr, and write the document to `file`, or to stdout where it is None.

    A target that is not met is a result like any other: it raises nothing.
    """
    print_table(document["name"], figures)
    for note in document.get("notes", ()):
        print(f"· {note}", file=sys.stderr)
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if file is None:
        sys.stdout.write(text)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def print_table(name: str, figures: Sequence[Figure]) -> None:
    """Print the figures to stderr, with the lowest and the highest ratio of neighbouring runs."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{name}: medians; a ratio above one: ours is the better")
    # Folds in a narrow terminal, so that no number is cut.
    table.add_column("figure", overflow="fold")
    table.add_column("unit", no_wrap=True)
    for heading in ("ours", "peer", "ratio", "of single runs", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("met", no_wrap=True)
    for item in figures:
        table.add_row(
            item.figure,
            item.unit,
            _number(item.value),
            _peer(item),
            _text(item.ratio, ".2f") if item.peer else "",
            "" if item.ratio_range is None else "{:.2f} to {:.2f}".format(*item.ratio_range),
            _target(item),
            {True: "yes", False: "no", None: ""}[item.met],
        )
    # Where there is no terminal whose width would count.
    width = None if sys.stderr.isatty() else LOG_COLUMNS
    Console(stderr=True, width=width).print(table)


def _text(value: float | None, digits: str) -> str:
    return MISSING if value is None else format(value, digits)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1e4 else f"{value:.4g}"


def _peer(item: Figure) -> str:
    if item.peer is None:
        return ""
    return f"{item.peer} {MISSING if item.peer_value is None else _number(item.peer_value)}"


def _target(item: Figure) -> str:
    parts = [] if item.target is None else [f"≥ {item.target:g}"]
    if item.limit is not None:
        parts.append(f"{'≥' if item.higher_is_better else '≤'} {_number(item.limit)} {item.unit}")
    return ", ".join(parts)
