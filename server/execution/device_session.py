"""Sessions on GPUs: of one model on one or more of them. The CPU's are in `session`."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import get_ident
from time import monotonic_ns
from typing import Any

import numpy.typing as npt
import onnxruntime

from headrace.errors import FailedPreconditionError
from server.execution.buckets import buckets_up_to
from server.execution.devices import CUDA_PROVIDER, Device, Placement, gate
from server.execution.engine_cache import with_own_engines
from server.execution.lanes import BoundLane, GraphLane
from server.execution.session import Session, opened
from server.execution.watchdog import Watchdog, watchdog
from server.explain.trees import has_trees

Array = npt.NDArray[Any]
_LOG = logging.getLogger(__name__)


class DeviceSession(Session):
    """A loaded ONNX graph, once on each device. A run goes to the one that has the fewest.

    Rows may have other bits in another batch: a GPU's libraries choose how to add by the shape.
    """

    def __init__(
        self,
        model: Path | bytes,
        folder: Path,
        placement: Placement,
        *,
        intra_op_threads: int = 1,
        watched_by: Watchdog = watchdog,
    ) -> None:
        """As `Session`. Raises FailedPreconditionError, too, where onnxruntime cannot use a
        device."""
        devices = with_own_engines(placement.devices, model, folder)
        first, *others = devices
        if first.kind == "cuda":
            _find_libraries()
        try:
            with gate.beside():
                super().__init__(
                    model,
                    folder,
                    intra_op_threads=intra_op_threads,
                    watched_by=watched_by,
                    providers=first.providers,
                )
                more = [opened(model, folder, intra_op_threads, each.providers) for each in others]
        except FailedPreconditionError as error:
            if not placement.graphs:
                raise
            raise FailedPreconditionError(
                "onnxruntime cannot load the model as CUDA graphs",
                expected="an ONNX model of which CUDA runs every node, without If, Loop and Scan",
                mend="leave out enable_cuda_graph; the server's log has onnxruntime's own words",
            ) from error.__cause__
        self.placement = placement
        lane = GraphLane if placement.graphs else BoundLane
        self._lanes: list[BoundLane] = []
        for session, device in zip((self._session, *more), devices, strict=True):
            _check(session, device)
            self._lanes.append(lane(session, device))
        self._choosing = threading.Lock()

    def capture(self, examples: Sequence[Array], rows_max: int) -> None:
        """Capture its CUDA graphs, where it is to have some. Before anybody else runs it.

        `examples` is a row of each input: [1, …]. Raises FailedPreconditionError.
        """
        sizes = buckets_up_to(rows_max, self.placement.buckets)
        for lane in self._lanes:
            if isinstance(lane, GraphLane):
                lane.capture(examples, sizes)

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """As `Session.run`."""
        with self._choosing:
            lane = min(self._lanes, key=_busy)
            lane.busy += 1
        options = onnxruntime.RunOptions()
        # Memory that a captured graph is bound to is never given back.
        if self.shrink_due and not self.placement.graphs:
            self.shrink_due = False
            arenas = "cpu:0"
            if lane.device.kind == "cuda":
                arenas += f";gpu:{lane.device.number}"
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", arenas)
        self._running[options] = (monotonic_ns(), get_ident())
        try:
            with gate.beside():
                return lane.run(feeds, options)
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base class
            failure = self._failure(error, options)
            raise failure from failure.__cause__
        finally:
            del self._running[options]
            with self._choosing:
                lane.busy -= 1


def open_session(
    model: Path | bytes, folder: Path, intra_op_threads: int, placement: Placement | None
) -> Session:
    """Return a model's session, on the devices of its placement or (None) on the CPU.

    An optional placement leaves trees to the CPU, which has code for them, and all that GPUs will
    not run. Raises as `Session` and `DeviceSession` do.
    """
    if placement is None or (placement.optional and has_trees(model)):
        return Session(model, folder, intra_op_threads=intra_op_threads)
    try:
        return DeviceSession(model, folder, placement, intra_op_threads=intra_op_threads)
    except FailedPreconditionError as error:
        if not placement.optional:
            raise
        _LOG.warning("a model runs on the CPU: %s", error.message)
        _LOG.warning("what onnxruntime said: %s", error.__cause__)
    return Session(model, folder, intra_op_threads=intra_op_threads)


def _busy(lane: BoundLane) -> int:
    return lane.busy


def _check(session: Any, device: Device) -> None:
    """Raise FailedPreconditionError for a session without its device's preferred provider:
    onnxruntime leaves out, without a word, those whose libraries it does not find."""
    wanted, _ = device.providers[0]
    used = session.get_providers()
    if wanted not in used:
        raise FailedPreconditionError(
            f"onnxruntime cannot load its {wanted}",
            expected="a driver, and the libraries of CUDA and cuDNN that it was built for",
            got=", ".join(used),
            mend="see `headrace doctor` and docs/gpu.md, or set kind: KIND_CPU",
        )


@cache
def _find_libraries() -> None:
    """Load the libraries of CUDA that were installed as packages, where there are some."""
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        return
    said = io.StringIO()  # it prints what it does not find
    with contextlib.redirect_stdout(said):
        onnxruntime.preload_dlls()
    if said.getvalue():
        _LOG.debug("onnxruntime: %s", said.getvalue().strip())
