"""What a backend is, and what it gets: the seam between a repository and what runs its models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from server.execution.devices import Placement
from server.execution.engine import CallingEngine, JoinedEngine
from server.execution.session import Session
from server.execution.statistics import Statistics
from server.execution.threads import RunThreads

if TYPE_CHECKING:
    from server.models.loaded import ServedModel
    from server.protocol.oip import Released

ModelConfig = Any  # tritonclient's generated classes carry no types


@dataclass(frozen=True, slots=True)
class Host:
    """What a backend may use of the server: its loop, its threads, and its other models.

    `find` returns the model of the repository that answers to (name, version) now; call it in the
    loop. It raises NotFoundError or UnavailableError. What is `released` goes before it: such a
    model is not to be asked without its plan.
    """

    loop: asyncio.AbstractEventLoop
    executor: RunThreads
    find: Callable[[str, str], ServedModel]
    released: Released | None = None


class VersionFiles(Protocol):
    """The files of a model, wherever they come from."""

    @property
    def name(self) -> str:
        """The model's name."""

    def has(self, number: int, filename: str) -> bool:
        """Return whether a version has a file of this name."""

    def path(self, number: int, filename: str) -> Path:
        """Return where a version's file lies.

        Raises FailedPreconditionError where it is not there, or came with a request.
        """

    def beside(self, folder: str, filename: str) -> bytes:
        """Return a file of a folder beside the versions. Raises as `path`."""

    def session(
        self, number: int, filename: str, threads: int, placement: Placement | None = None
    ) -> Session:
        """Return the onnxruntime session of a version's file; each run has so many threads.

        Without a placement it is on the CPU.
        """


class Made(NamedTuple):
    """A version that can run: its whole configuration and its engine.

    `graph` is the ONNX file of a session that was made of another one.
    """

    config: ModelConfig
    engine: JoinedEngine | CallingEngine
    graph: bytes | None = None


class Backend(Protocol):
    """Loads versions. An entry point of the group `headrace.backends` names such a class."""

    default_filename: (
        str  # of a version's file, where the configuration names none; "": it has none
    )
    # Whether the file is an ONNX graph that this process loads: it is looked into, and its memory
    # is within the budget.
    graphs: bool

    def load(
        self,
        files: VersionFiles,
        number: int,
        config: ModelConfig | None,
        host: Host,
        statistics: Statistics,
    ) -> Made:
        """Return what answers for one version. Blocks, in a thread of its own.

        A calling engine counts its executions in `statistics`. Raises FailedPreconditionError when
        the files and the configuration do not make a model.
        """
