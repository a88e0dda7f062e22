"""Engines: what a backend makes of the files of one model version, and what they are asked.

Two kinds. A *joined* engine runs arrays: the batcher joins many requests' rows into one run and
cuts its outputs apart again (onnxruntime). A *calling* engine gets each request as it is, with its
id and parameters, and says itself what becomes of it (Python models, ensembles).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from headrace.errors import HeadraceError
from server.execution.batcher import Batcher
from server.execution.lots import Timing

Array = npt.NDArray[Any]
Parameter = bool | int | float | str


@dataclass(slots=True)
class Asked:
    """What a request says beside its tensors. `wanted` empty: all outputs; the deadline is
    monotonic."""

    request_id: str = ""
    wanted: Sequence[str] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    deadline_ns: int | None = None
    priority: int = 0
    timeout_ns: int = 0  # that it may wait in a queue
    who: Callable[[], dict[str, str]] = dict  # what the log is to say of it


@dataclass(slots=True)
class Outputs:
    """All outputs of one request, in the signature's order, and where its time went.

    None stands for an output that a model left out because nobody wanted it.
    """

    arrays: list[Array]
    timing: Timing
    parameters: dict[str, Parameter] = field(default_factory=dict)


@dataclass(slots=True)
class Part:
    """One response of several. Of a `final` one there may be nothing but that: `arrays` is None."""

    arrays: list[Array] | None
    final: bool
    parameters: dict[str, Parameter] = field(default_factory=dict)
    error: HeadraceError | None = None


class Engine(Protocol):
    """What both kinds are. Names are in the engine's own order."""

    @property
    def input_names(self) -> Sequence[str]:
        """In this order it takes feeds."""

    @property
    def output_names(self) -> Sequence[str]:
        """In this order it gives outputs."""


@runtime_checkable
class JoinedEngine(Engine, Protocol):
    """Runs arrays of many rows."""

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """Return all outputs for the joined feeds; may be called in any thread.

        Raises InternalError when the model fails on these values.
        """


@runtime_checkable
class CallingEngine(Engine, Protocol):
    """Answers requests. Its methods are called in the loop."""

    @property
    def ready(self) -> bool:
        """Whether it would answer now."""

    @property
    def queue(self) -> Batcher | None:
        """Where lots of requests without id and parameters may go, that want all outputs; None
        while each request is to come by itself."""

    @property
    def waiting(self) -> int:
        """How many requests wait until they run."""

    async def answer(self, feeds: list[Array], rows: int, asked: Asked) -> Outputs:
        """Return what came of one request that has exactly one response."""

    def retire(self) -> None:
        """Nobody new will ask: end what it holds as soon as those who are there are answered."""

    async def closed(self) -> None:
        """Retire, and return when that is done."""


@runtime_checkable
class StreamingEngine(CallingEngine, Protocol):
    """Answers requests that may have many responses: of a decoupled model."""

    def stream(self, feeds: list[Array], rows: int, asked: Asked) -> AsyncGenerator[Part]:
        """Yield the responses of one request; the last one, and only it, is final.

        Closing it early cancels the request.
        """
