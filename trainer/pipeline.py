"""A pipeline: plain functions over one context, run in order, and the record of a run.

The record's words are OpenLineage's (job namespace and name, run, inputs, outputs, event type).
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from headrace.digest import canonical_json
from headrace.times import format_us
from trainer.lineage import CodeVersion, code_version, environment_digest

Progress = Callable[[str, str, float], None]
"""(step, detail, share of the step that is done: 0 to 1)."""

NAMESPACE = "headrace"
RECORD = "run.json"


def silent(step: str, detail: str, share: float) -> None:
    """Report progress to nobody."""


@dataclass(kw_only=True)
class Run(ABC):
    """What every context carries: who is told how far it is, and what the record will say.

    `code` is where the run's code lies; `inputs` and `outputs` are digests by dataset name.
    """

    code: Path
    progress: Progress = silent
    run_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    step: str = ""
    code_version: CodeVersion = field(init=False)
    environment: str = field(init=False)

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where the run's results and its record go."""

    def report(self, detail: str, share: float) -> None:
        """Say how much of the present step is done."""
        self.progress(self.step, detail, share)


Context = TypeVar("Context", bound=Run)


class Pipeline(Generic[Context]):
    """Steps in order. A step is a function of the context; its name is the function's."""

    def __init__(self, name: str, steps: Sequence[Callable[[Context], None]]) -> None:
        self.name = name
        self.steps = list(steps)

    @property
    def step_names(self) -> list[str]:
        """The names of the steps, in order."""
        return [step.__name__ for step in self.steps]

    def run(self, context: Context) -> dict[str, Any]:
        """Run all steps and return the record, which is also written to `run.json` in the folder.

        A step that raises ends the run: the record says FAIL and where, and the error goes on.
        """
        context.folder.mkdir(parents=True, exist_ok=True)
        context.code_version = code_version(context.code)
        context.environment = environment_digest()
        record: dict[str, Any] = {
            "run": context.run_id,
            "job": {"namespace": NAMESPACE, "name": self.name},
            "event_type": "FAIL",
            "started": _now(),
            "steps": [],
            "code": context.code_version._asdict(),
            "environment_digest": context.environment,
        }
        try:
            for step in self.steps:
                context.step = step.__name__
                record["steps"].append(_timed(step, context))
            record["event_type"] = "COMPLETE"
        finally:
            record |= {
                "failed_step": None if record["event_type"] == "COMPLETE" else context.step,
                "ended": _now(),
                "parameters": context.parameters,
                "inputs": _datasets(context.inputs),
                "outputs": _datasets(context.outputs),
            }
            (context.folder / RECORD).write_bytes(canonical_json(record))
        return record


def _timed(step: Callable[[Context], None], context: Context) -> dict[str, Any]:
    context.report("", 0.0)
    start = time.perf_counter()
    step(context)
    seconds = time.perf_counter() - start
    context.report("", 1.0)
    return {"name": step.__name__, "seconds": round(seconds, 3)}


def _datasets(digests: dict[str, str]) -> list[dict[str, str]]:
    return [
        {"namespace": NAMESPACE, "name": name, "digest": digest}
        for name, digest in sorted(digests.items())
    ]


def _now() -> str:
    return format_us(time.time_ns() // 1000)
