"""How one session runs on one device: by IO binding, or as CUDA graphs of a few batch sizes.

onnxruntime keeps a captured graph in the thread that captured it, and a capture binds the memory
that it reads and writes. So all runs of such a session are in one thread of its own, and each size
has buffers that nothing else is ever bound to.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from headrace.errors import FailedPreconditionError, HeadraceError
from server.execution.buckets import bucket_for, fill
from server.execution.devices import Device, gate
from server.execution.session import BFLOAT16, array_of, bfloat16_value

Array = npt.NDArray[Any]
_TEXT = "tensor(string)"
_GRAPH_ID, _NO_GRAPH = "gpu_graph_id", "-1"  # onnxruntime's words
# It runs twice for its memory to be there, then captures; of the last one there is a replay.
_RUNS_TO_CAPTURE = 4
# A replay runs the same kernels as the run it is held against, but may sum in another order.
_RELATIVE, _ABSOLUTE = 1e-2, 1e-3


class BoundLane:
    """Runs by IO binding: inputs are copied once to where they are needed, outputs once back."""

    def __init__(self, session: Any, device: Device) -> None:
        """`session` is onnxruntime's."""
        self.busy = 0  # runs in it; its owner counts them
        self.device = device
        self._session = session
        self._inputs = [(node.name, node.type) for node in session.get_inputs()]
        self._output_names = [node.name for node in session.get_outputs()]
        kinds = {node.type for node in (*session.get_inputs(), *session.get_outputs())}
        self._has_text = _TEXT in kinds
        self._has_bfloat16 = BFLOAT16 in kinds

    def run(self, feeds: Sequence[Array], options: Any) -> list[Array]:
        """Return all outputs. Raises what onnxruntime raises."""
        if self._has_text:  # it cannot be bound
            by_name = {name: feed for (name, _), feed in zip(self._inputs, feeds, strict=True)}
            outputs: list[Array] = self._session.run(self._output_names, by_name, options)
            return outputs
        binding = self._session.io_binding()
        for (name, kind), feed in zip(self._inputs, feeds, strict=True):
            if kind == BFLOAT16:
                binding.bind_ortvalue_input(name, bfloat16_value(feed))
            else:
                binding.bind_cpu_input(name, feed)
        for name in self._output_names:
            binding.bind_output(name, "cpu")
        # Without a word of it onnxruntime looks for one by an exception, which takes 40 µs.
        options.add_run_config_entry(_GRAPH_ID, _NO_GRAPH)
        self._session.run_with_iobinding(binding, options)
        return [array_of(value) for value in binding.get_outputs()]


class GraphLane(BoundLane):
    """Runs batches as CUDA graphs, once they are captured; what fits none runs by IO binding."""

    def __init__(self, session: Any, device: Device) -> None:
        super().__init__(session, device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpu")
        self._sizes: tuple[int, ...] = ()
        self._buckets: list[_Bucket] = []

    def run(self, feeds: Sequence[Array], options: Any) -> list[Array]:
        """Return all outputs. Raises what onnxruntime raises."""
        return self._thread.submit(self._run, feeds, options).result()

    def capture(self, examples: Sequence[Array], sizes: tuple[int, ...]) -> None:
        """Capture a graph for batches of each size, ascending. Nothing may run here meanwhile.

        `examples` is a row of each input: [1, …]. Raises FailedPreconditionError.
        """
        if self._has_text or self._has_bfloat16:
            raise _refused("it has tensors of text or BF16")
        # The largest first: what the others need of memory is then there.
        buckets = []
        for size in reversed(sizes):
            with gate.alone():
                buckets.append(self._thread.submit(self._captured, examples, size).result())
        self._buckets = buckets[::-1]
        self._sizes = sizes

    def _run(self, feeds: Sequence[Array], options: Any) -> list[Array]:
        rows = len(feeds[0]) if feeds and feeds[0].ndim else 0
        place = bucket_for(self._sizes, rows) if rows else None
        if place is None or not self._buckets[place].fits(feeds, rows):
            return super().run(feeds, options)
        return self._buckets[place].run(feeds, rows, options)

    def _captured(self, examples: Sequence[Array], size: int) -> _Bucket:
        zeros = [np.zeros((size, *row.shape[1:]), row.dtype) for row in examples]
        ones = [np.ones_like(feed) for feed in zeros]
        try:
            outputs = self._uncaptured(zeros)
            for name, output in zip(self._output_names, outputs, strict=True):
                if not output.ndim or len(output) != size:
                    raise _refused(f"its output '{name}' has not a row for each row")
            names = [name for name, _ in self._inputs], self._output_names
            bucket = _Bucket(self._session, self.device, size, names, zeros, outputs)
            for _ in range(_RUNS_TO_CAPTURE):
                bucket.run(zeros, size, onnxruntime.RunOptions())
        except HeadraceError:
            raise
        except Exception as error:  # onnxruntime's errors share no base class
            raise _refused(f"a batch of {size} rows of zeros fails") from error
        try:
            wanted = self._uncaptured(ones)
        except Exception:  # noqa: BLE001 - it may refuse ones, as any value
            return bucket
        if not _alike(bucket.run(ones, size, onnxruntime.RunOptions()), wanted):
            raise _refused("its replay answers otherwise than the graph itself")
        return bucket

    def _uncaptured(self, feeds: Sequence[Array]) -> list[Array]:
        return super().run(feeds, onnxruntime.RunOptions())


class _Bucket:
    """The buffers of one batch size, and the binding that its graph was captured with."""

    def __init__(
        self,
        session: Any,
        device: Device,
        size: int,
        names: tuple[Sequence[str], Sequence[str]],
        inputs: Sequence[Array],
        outputs: Sequence[Array],
    ) -> None:
        """`inputs` and `outputs` are arrays of the shapes and dtypes that there will be."""
        self._session = session
        self._size = size
        self._graph_id = str(size)
        self._on_cpu = device.kind == "cpu"
        self._hosts = [np.zeros_like(array) for array in inputs]
        self._inputs, self._outputs = (
            [
                onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                    array.shape, array.dtype.type, device.kind, device.number
                )
                for array in arrays
            ]
            for arrays in (inputs, outputs)
        )
        self._binding = session.io_binding()
        for name, value in zip(names[0], self._inputs, strict=True):
            self._binding.bind_ortvalue_input(name, value)
        for name, value in zip(names[1], self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, value)

    def fits(self, feeds: Sequence[Array], rows: int) -> bool:
        """Return whether these are rows of its shapes and dtypes."""
        return all(
            feed.dtype == host.dtype and len(feed) == rows and feed.shape[1:] == host.shape[1:]
            for feed, host in zip(feeds, self._hosts, strict=True)
        )

    def run(self, feeds: Sequence[Array], rows: int, options: Any) -> list[Array]:
        """Return the outputs of `rows` rows, and of no others. The caller has its thread."""
        for feed, host, value in zip(feeds, self._hosts, self._inputs, strict=True):
            if rows == self._size:
                value.update_inplace(feed)
                continue
            fill(host, feed)
            value.update_inplace(host)
        options.add_run_config_entry(_GRAPH_ID, self._graph_id)
        self._session.run_with_iobinding(self._binding, options)
        arrays = [value.numpy()[:rows] for value in self._outputs]
        # On the CPU they are views of the buffers, which the next run fills.
        return [array.copy() for array in arrays] if self._on_cpu else arrays


def _alike(answers: Sequence[Array], wanted: Sequence[Array]) -> bool:
    return all(
        np.allclose(answer, want, _RELATIVE, _ABSOLUTE, equal_nan=True)
        for answer, want in zip(answers, wanted, strict=True)
    )


def _refused(why: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"the model cannot run as CUDA graphs: {why}",
        where="config.pbtxt",
        expected="operators that CUDA runs, on tensors of fixed sizes behind the batch dimension",
        mend="leave out enable_cuda_graph",
    )
