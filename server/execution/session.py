"""One onnxruntime session, with the options that make its answers repeatable."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path
from threading import get_ident
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from headrace.errors import (
    FailedPreconditionError,
    HeadraceError,
    InternalError,
    ResourceExhaustedError,
)
from server.execution.devices import CPU_PROVIDERS, Provider
from server.execution.watchdog import Watchdog, watchdog
from server.explain.trees import file_with_trees

if TYPE_CHECKING:
    from server.execution.trees.evaluator import TreeRun

Array = npt.NDArray[Any]
BFLOAT16, _BFLOAT16_NUMBER = "tensor(bfloat16)", 16  # the second is ONNX's
# Errors are raised, and our log says them: its own lines would have no form of ours.
_LOG_FATAL_ONLY = 4
onnxruntime.set_default_logger_severity(_LOG_FATAL_ONLY)


class Session:
    """A loaded ONNX graph. One thread: the same row gives the same bits, alone or in a batch.

    Parallelism comes from several workers and several models, not from within a run.
    """

    def __init__(
        self,
        model: Path | bytes,
        folder: Path,
        *,
        intra_op_threads: int = 1,
        watched_by: Watchdog = watchdog,
        providers: Sequence[Provider] | None = None,
    ) -> None:
        """Load a file, or bytes that were verified; external tensors are read from `folder` only.

        Without `providers` it is on the CPU, where trees are evaluated by our own code.

        Raises FailedPreconditionError when it is not a model that can run. onnxruntime's own text
        holds paths of the machine: it is the `__cause__`, for the log only.
        """
        self._session = opened(model, folder, intra_op_threads, providers or CPU_PROVIDERS)
        self.inputs = self._session.get_inputs()
        self.outputs = self._session.get_outputs()
        self.input_names = [node.name for node in self.inputs]
        self.output_names = [node.name for node in self.outputs]
        self._has_bfloat16 = any(node.type == BFLOAT16 for node in (*self.inputs, *self.outputs))
        self.shrink_due = False
        self._watchdog = watched_by
        self._running = watched_by.runs
        watched_by.watch(self)
        self._trees: TreeRun | None = None
        # Several threads add up trees in another order.
        if intra_op_threads == 1 and providers is None:
            self._trees = _tree_run(model, self)

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """Run the graph on `feeds`, in the order of `inputs`; return all outputs in order.

        A bfloat16 is its two bytes, as uint16. Raises InternalError when the graph fails on these
        values, ResourceExhaustedError when it lacks the memory, RunStoppedError when the watchdog
        has ended it.
        """
        if self._trees is not None:
            answers = self._trees.run(feeds)
            if answers is not None:
                return answers
        names = self.input_names
        if len(names) == 1 == len(feeds):  # nearly every model, and once a tick
            by_name = {names[0]: feeds[0]}
        else:
            by_name = dict(zip(names, feeds, strict=True))
        options = onnxruntime.RunOptions()  # 0.25 µs: one that is used again could be ended late
        if self.shrink_due:
            self.shrink_due = False
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        running = self._running
        running[options] = (monotonic_ns(), get_ident())
        try:
            if self._has_bfloat16:
                return self._run_with_values(by_name, options)
            outputs: list[Array] = self._session.run(self.output_names, by_name, options)
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base class
            failure = self._failure(error, options)
            raise failure from failure.__cause__
        finally:
            del running[options]
        return outputs

    def _failure(self, error: Exception, options: Any) -> HeadraceError:
        """Return what the error of a run is to its requests, with its cause."""
        if options.terminate:
            return self._watchdog.stopped(monotonic_ns() - self._running[options][0])
        failure: HeadraceError
        if _lacks_memory(error):
            failure = ResourceExhaustedError("the model has not enough memory for this")
        else:
            failure = InternalError(
                "the model failed on this input",
                got=type(error).__name__,
                mend="the server's log has onnxruntime's own words",
            )
        failure.__cause__ = error
        return failure

    def _run_with_values(self, by_name: dict[str, Array], options: Any) -> list[Array]:
        """Run by onnxruntime's own values: its arrays know no bfloat16, as NumPy does not."""
        kinds = {node.name: node.type for node in self.inputs}
        feeds = {
            name: bfloat16_value(array)
            if kinds[name] == BFLOAT16
            else onnxruntime.OrtValue.ortvalue_from_numpy(array)
            for name, array in by_name.items()
        }
        values = self._session.run_with_ort_values(self.output_names, feeds, options)
        return [array_of(value) for value in values]


def opened(
    model: Path | bytes, folder: Path, intra_op_threads: int, providers: Sequence[Provider]
) -> Any:
    """Return onnxruntime's session of a model. Raises as `Session` does."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_FATAL_ONLY
    if isinstance(model, bytes):
        # Without this a model from bytes reads its external tensors from the process's folder.
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
    try:
        # A fallback would print what is wrong, and run the model where nobody wanted it.
        return onnxruntime.InferenceSession(
            model, options, providers=list(providers), enable_fallback=0
        )
    except Exception as error:  # onnxruntime's errors share no base class
        if _lacks_memory(error):
            raise ResourceExhaustedError("there is not enough memory for the model") from error
        raise FailedPreconditionError(
            "the file is not an ONNX model that onnxruntime can load",
            got=type(error).__name__,
            mend="the server's log has onnxruntime's own words",
        ) from error


def _tree_run(model: Path | bytes, session: Session) -> TreeRun | None:
    """Return what evaluates a model of trees in onnxruntime's place, where it does as well."""
    data = file_with_trees(model)
    if data is None:
        return None
    # Its code is loaded where there are trees; a nursery has it at hand.
    from server.execution.trees.evaluator import tree_run

    return tree_run(data, session.inputs, session.output_names, session.run)


def bfloat16_value(array: Array) -> Any:
    """Return the value of bfloat16 whose two bytes each are elements of `array`, uint16."""
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
        array if array.flags.c_contiguous else array.copy(), _BFLOAT16_NUMBER
    )


def array_of(value: Any) -> Array:
    """Return the elements of one of onnxruntime's own values; of bfloat16 a copy, as uint16."""
    if value.data_type() != BFLOAT16:
        array: Array = value.numpy()
        return array
    shape = value.shape()
    size = math.prod(shape) * 2
    data = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(data, np.uint16).reshape(shape)


def _lacks_memory(error: Exception) -> bool:
    text = str(error)
    said = ("Failed to allocate", "bad_alloc", "out of memory")  # the last one is CUDA's
    return isinstance(error, MemoryError) or any(words in text for words in said)
