"""Takes the place of onnxruntime for graphs that are one tree ensemble, where it is proved equal.

Proved when the model is loaded, on rows made for it: at its thresholds and one bit beside them,
NaN, infinities and zeros of both signs. Every bit must be onnxruntime's; else that goes on alone.
So it does not matter which of the two answers a row: the one that was measured to be faster does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from statistics import median
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError, UnimplementedError
from server.execution.trees.graph import TreeGraph, read_tree_graph
from server.execution.trees.kernels import Layout
from server.vectors import LANES

Array = npt.NDArray[Any]
Run = Callable[[Sequence[Array]], list[Array]]
_LOG = logging.getLogger(__name__)
_FLOAT32 = np.dtype(np.float32)

_PROOF_ROWS: Final = 509  # whole blocks, and rows that fill none
_SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 3e38], np.float32)
_SPECIAL_SHARE: Final = 0.1
_FEATURES_MAX: Final = 1 << 14
_SIZES: Final = (1, 4, 16, 64, 256)  # that are measured; `_size_class` says which counts for which
_MEASURE_S: Final = 0.1  # of all sizes
_RUNS: Final = 7  # of one size
_FASTER: Final = 1.1  # by less it is not worth it
# A run cannot be ended, as onnxruntime's can: longer ones are left to that.
_RUN_MAX_NS: Final = 50_000_000


class TreeRun:
    """Runs the trees of one model; for any thread."""

    def __init__(self, graph: TreeGraph, width: int | None) -> None:
        """`width` is that of the model's rows, None where it takes any."""
        self._layout = Layout(graph)
        self._ensemble = graph.ensemble  # held, so that who explains it need not read it again
        self._width = width
        self._features = graph.features
        self._lookups = graph.lookups
        self._labels = graph.labels
        self._answers = graph.answers
        self.alone = 0
        self.wins = [True] * len(_SIZES)
        self.rows_max = _PROOF_ROWS

    def run(self, feeds: Sequence[Array]) -> list[Array] | None:
        """Return all outputs, as the session does; None where the session shall."""
        rows = feeds[0]
        if (
            rows.ndim != 2
            or not 0 < len(rows) <= self.rows_max
            or not self.wins[_size_class(len(rows))]
            or not (self._features <= rows.shape[1] <= _FEATURES_MAX)
            or self._width not in (None, rows.shape[1])
            or rows.dtype != _FLOAT32
            or not rows.flags.c_contiguous
        ):
            return None
        return self.answers(rows)

    def answers(self, rows: Array) -> list[Array]:
        """Return all outputs for rows of the right shape."""
        if self._lookups is not None:
            rows = self._lookups.extended(rows)
        scores, labels = self._layout.run(rows, self.alone)
        return [self._labels[labels] if label else scores for label in self._answers]


def tree_run(
    data: bytes, inputs: Sequence[Any], outputs: Sequence[str], run: Run
) -> TreeRun | None:
    """Return what takes the place of `run` for an ONNX file; None where nothing does.

    `inputs` and `run` are those of the model's session, `outputs` the names of its outputs.
    """
    try:
        trees = _proved(data, inputs, outputs, run)
    except UnimplementedError as error:
        _LOG.info("%s", error.message)
        return None
    if not any(trees.wins):
        _LOG.info("onnxruntime evaluates the trees faster")
        return None
    return trees


def _proved(data: bytes, inputs: Sequence[Any], outputs: Sequence[str], run: Run) -> TreeRun:
    graph = read_tree_graph(data, outputs)
    width = _width(inputs)
    trees = TreeRun(graph, width)
    rows = _proof_rows(graph, max(width or 0, graph.features, 1))
    for alone in (0, LANES - 1):
        trees.alone = alone
        for part in _parts(rows):
            try:
                expected = run([part])
            except HeadraceError:
                raise UnimplementedError(
                    "onnxruntime does not take rows made for the trees"
                ) from None
            pairs = zip(trees.answers(part), expected, strict=True)
            if not all(_same(found, wanted) for found, wanted in pairs):
                raise UnimplementedError("onnxruntime evaluates the trees otherwise")
    _measure(trees, rows, run)
    return trees


def _width(inputs: Sequence[Any]) -> int | None:
    """Return how many features a row has, None for any number."""
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 2:
        raise UnimplementedError(
            "its trees are not evaluated as such: its input is no rows of float32"
        )
    rows, width = inputs[0].shape
    if isinstance(rows, int):
        raise UnimplementedError(
            "its trees are not evaluated as such: its rows are as many each time"
        )
    return width if isinstance(width, int) else None


def _proof_rows(graph: TreeGraph, width: int) -> npt.NDArray[np.float32]:
    """Return rows float32 [rows, width] about which trees are easily wrong; the same each time."""
    if max(width, graph.ensemble.features) > _FEATURES_MAX:
        raise UnimplementedError("its trees are not evaluated as such: its rows are too wide")
    random = np.random.default_rng(0)
    rows = random.normal(size=(_PROOF_ROWS, width)).astype(np.float32)
    trees = graph.ensemble
    inner = trees.yes >= 0
    of_rows = inner & (trees.feature < width)  # the others are columns of lookups
    for feature in np.unique(trees.feature[of_rows]):
        values = trees.threshold[inner & (trees.feature == feature)].astype(np.float32)
        chosen = random.choice(values, _PROOF_ROWS)
        beside = np.array([-np.inf, np.inf], np.float32)[random.integers(0, 2, _PROOF_ROWS)]
        moved = random.random(_PROOF_ROWS) < 2 / 3
        with np.errstate(over="ignore", under="ignore"):
            rows[:, feature] = np.where(moved, np.nextafter(chosen, beside), chosen)
    if graph.lookups is not None:
        for feature, table in zip(graph.lookups.features, graph.lookups.tables, strict=True):
            halves = random.integers(-4, 2 * len(table), _PROOF_ROWS) / 2
            rows[:, feature] = np.where(random.random(_PROOF_ROWS) < 0.5, np.floor(halves), halves)
    special = random.random(rows.shape) < _SPECIAL_SHARE
    rows[special] = random.choice(_SPECIAL, int(special.sum()))
    return rows


def _parts(rows: Array) -> Iterator[Array]:
    """Yield rows all together, and some of them in smaller batches."""
    yield rows
    for begin, count in ((0, 1), (1, 1), (2, 2), (4, 7), (16, 17)):
        yield rows[begin : begin + count]


def _same(found: Array, expected: Array) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if found.dtype == object:
        return bool((found == expected).all())
    return found.tobytes() == expected.tobytes()


def _measure(trees: TreeRun, rows: Array, run: Run) -> None:
    """Set when the trees run, and how."""
    end_ns = time.monotonic_ns() + int(_MEASURE_S * 1e9)
    one = list(_batches(rows, 1))
    took = {}
    for alone in (0, LANES - 1):
        trees.alone = alone
        took[alone] = _took_ns(trees.answers, one, end_ns)
    trees.alone = min(int(took[0] / took[LANES - 1]), LANES - 1)
    for place, size in enumerate(_SIZES):
        batches = list(_batches(rows, size))
        ours_ns = _took_ns(trees.answers, batches, end_ns)
        theirs_ns = _took_ns(lambda batch: run([batch]), batches, end_ns)
        trees.wins[place] = ours_ns * _FASTER < theirs_ns
    trees.rows_max = max(int(_RUN_MAX_NS * _SIZES[-1] / ours_ns), _SIZES[-1])


def _batches(rows: Array, size: int) -> Iterator[Array]:
    """Yield batches that differ: a processor remembers which way the same rows went."""
    starts = range(0, len(rows) - size + 1, size if size < len(rows) // _RUNS else 1)
    return islice((rows[at : at + size] for at in starts), 8 * _RUNS if size == 1 else _RUNS)


def _took_ns(run: Callable[[Array], Any], batches: Sequence[Array], end_ns: int) -> float:
    """Return what a run takes: the median over batches, of one at least until the time is up."""
    taken = []
    for batch in batches:
        start_ns = time.monotonic_ns()
        run(batch)
        now_ns = time.monotonic_ns()
        taken.append(now_ns - start_ns)
        if now_ns > end_ns:
            break
    return max(median(taken), 1.0)


def _size_class(rows: int) -> int:
    """Return the place of the largest of `_SIZES` that is not above `rows` (each is 4 times the one
    before)."""
    return min((rows.bit_length() - 1) // 2, len(_SIZES) - 1)
