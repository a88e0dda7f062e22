"""What explains one model: its trees exactly where they can be read, else by sampling.

Attributions of trees are of their raw scores, before a post transform or whatever the graph does
with them; sampled ones are of the model's first output of floats, as it is. Sampling takes rows as
the background: those that come with the model (a bundle's golden rows), or one of zeros.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from headrace.errors import InvalidArgumentError, UnimplementedError
from server.explain.permutation import (
    BACKGROUND_MAX,
    MODEL_ROWS,
    Estimate,
    Floats,
    estimate,
)
from server.explain.trees import Ensemble

if TYPE_CHECKING:
    from server.explain.tree_shap import TreeShap

Array = npt.NDArray[Any]
Run = Callable[[list[Array]], list[Array]]

VALUES_MAX: Final = 1 << 22  # attributions of one request
SAMPLED_ROWS_MAX: Final = 64  # of one request: each runs the model `MODEL_ROWS` times
# Few, so that none waits for many.
_SAMPLED_AT_ONCE: Final = 16
TREE_SHAP, PERMUTATION = "tree_shap", "permutation"
NO_DEADLINE: Final = np.iinfo(np.int64).max
_LOG = logging.getLogger(__name__)


class Explainer:
    """Explains the rows of a model; made when it is loaded, prepared when it is first asked."""

    def __init__(
        self,
        run: Run,
        score: int | None,
        ensemble: Ensemble | None,
        background: Sequence[Array] | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`run` is the model; `score` is the place of the output that sampling explains, None where
        the model cannot be sampled. `background` has rows for each of its inputs."""
        self._run = run
        self._score = score
        self._ensemble = ensemble
        self._background = background
        self._now_ns = now_ns
        self._trees: TreeShap | None = None

    @property
    def method(self) -> str:
        """How it explains, once it is prepared."""
        return PERMUTATION if self._trees is None else TREE_SHAP

    @property
    def rows_at_once(self) -> int:
        """How many rows are to be explained together at most, once it is prepared."""
        if self._trees is None:
            return _SAMPLED_AT_ONCE
        return max(VALUES_MAX // max(self._trees.features * self._trees.outputs, 1), 1)

    def prepare(self) -> None:
        """Lay out the trees, once; those that cannot be are sampled. Blocks."""
        if self._ensemble is None or self._trees is not None:
            return
        # Its code is loaded where there are trees; a nursery has it at hand.
        from server.explain.tree_shap import TreeShap

        try:
            self._trees = TreeShap(self._ensemble)
        except UnimplementedError as error:
            _LOG.info("attributions are sampled: %s", error.message)

    def check(self, feeds: Sequence[Array], rows: int) -> None:
        """Raise UnimplementedError or InvalidArgumentError for what cannot be explained."""
        if self._trees is not None:
            if feeds[0].ndim != 2 or feeds[0].shape[1] < self._trees.features:
                raise InvalidArgumentError(
                    "the input is narrower than the trees ask for",
                    expected=f"{self._trees.features} features",
                    got=list(feeds[0].shape),
                )
            values = feeds[0].size * self._trees.outputs
            if values > VALUES_MAX:
                raise InvalidArgumentError(
                    "too many attributions for one request",
                    expected=f"at most {VALUES_MAX}",
                    got=values,
                    mend="send fewer rows at once",
                )
            return
        if self._score is None:
            raise UnimplementedError(
                "this model cannot be explained",
                expected="inputs of numbers, and an output of floats",
            )
        if rows > SAMPLED_ROWS_MAX:
            raise InvalidArgumentError(
                "too many rows to be explained by sampling",
                expected=f"at most {SAMPLED_ROWS_MAX}",
                got=rows,
                mend=f"each row runs the model on about {MODEL_ROWS}",
            )

    def run(self, feeds: list[Array]) -> list[Array]:
        """Return attributions float64 [rows, features, outputs] and base [rows, outputs]; of
        sampled ones also their standard errors.

        Behind the model's feeds come seeds uint64 [rows] and deadlines int64 [rows], monotonic ns:
        rows whose deadline passes before their turn is over get NaN.
        """
        *inputs, seeds, deadlines_ns = feeds
        if self._trees is not None:
            values = self._trees.explain(inputs[0])
            return [values, np.repeat(self._trees.base[None], len(values), axis=0)]
        estimates = [
            self._estimate([array[row] for array in inputs], seed, deadline_ns)
            for row, (seed, deadline_ns) in enumerate(
                zip(seeds.tolist(), deadlines_ns.tolist(), strict=True)
            )
        ]
        return _joined(estimates)

    def _estimate(self, row: list[Array], seed: int, deadline_ns: int) -> Estimate | None:
        return estimate(
            self._scores, row, self._background_for(row), seed,
            lambda: self._now_ns() >= deadline_ns,
        )  # fmt: skip

    def _scores(self, inputs: list[Array]) -> Floats:
        assert self._score is not None
        output = self._run(inputs)[self._score]
        return output.reshape(len(inputs[0]), -1).astype(np.float64)

    def _background_for(self, row: list[Array]) -> list[Array]:
        given = self._background
        if given is not None and all(
            array.shape == rows.shape[1:] for array, rows in zip(row, given, strict=True)
        ):
            return [
                rows[:BACKGROUND_MAX].astype(array.dtype, copy=False)
                for array, rows in zip(row, given, strict=True)
            ]
        return [np.zeros((1, *array.shape), array.dtype) for array in row]


def _joined(estimates: Sequence[Estimate | None]) -> list[Array]:
    """Return values, base and errors of all rows; NaN for those that came too late."""
    done = next((each for each in estimates if each is not None), None)
    if done is None:
        empty = np.full((len(estimates), 1, 1), np.nan)
        return [empty, empty[:, 0], empty]
    shapes = (done.values, done.errors, done.base)
    nothing = Estimate(*(np.full_like(each, np.nan) for each in shapes))
    rows = [nothing if each is None else each for each in estimates]
    return [
        np.stack([each.values for each in rows]),
        np.stack([each.base for each in rows]),
        np.stack([each.errors for each in rows]),
    ]
