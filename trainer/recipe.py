"""What a training run is told, what its steps leave for one another, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features import CompiledService, Definitions, FeatureBatch
from headrace.times import format_us, to_us
from trainer.calibration import CalibratorKind
from trainer.calibrators import Calibrator, calibrate
from trainer.evaluate import Evaluation
from trainer.parity import ParityReport
from trainer.pipeline import Run
from trainer.training import Model


@dataclass(frozen=True)
class Period:
    """From `start` up to, not including, `end`: times with a time zone."""

    start: datetime
    end: datetime

    def rows(self, times_us: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which times (int64 µs UTC) lie in the period."""
        return (times_us >= to_us(self.start)) & (times_us < to_us(self.end))

    def __str__(self) -> str:
        return f"{format_us(to_us(self.start))} to {format_us(to_us(self.end))}"


@dataclass(frozen=True)
class Candidate:
    """One version to be made, with parameters tuned on `tune` or those of the one it is `like`.

    It is trained on decisions of `train` whose label was known by the end of `train`.
    """

    name: str
    train: Period
    test: Period
    tune: Period | None = None
    like: str = ""


@dataclass(frozen=True)
class Purpose:
    """The part of the model card that no pipeline can know."""

    owner: str
    use: str
    not_for: str
    limits: list[str]


@dataclass(frozen=True)
class Recipe:
    """A binary classifier on the features of one service.

    `label` (bool) and `label_time` (µs: when it was known) name columns of the spine, `slices`
    those by which the AUC is broken down. The baselines see the columns of `baseline_service`,
    which are among the model's; the logistic one takes `categories` (of them) one-hot. The first
    candidate is the champion: its AUC must be `auc_gain_min` above the logistic baseline's. The
    `calibrator` is fitted on the rows that a candidate is tuned on; those that are `like` it take
    it over.
    """

    model: str
    definitions: Path
    service: str
    baseline_service: str
    categories: tuple[str, ...]
    label: str
    label_time: str
    classes: tuple[str, str]
    slices: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    purpose: Purpose
    auc_gain_min: float = 0.06
    calibrator: CalibratorKind | None = None
    seed: int = 2013

    @property
    def champion(self) -> Candidate:
        """The first candidate."""
        return self.candidates[0]


@dataclass(frozen=True)
class Trained:
    """A candidate's booster, its ONNX bytes, and its decision layer.

    It says yes from `threshold` on, of what the `calibrator` makes of a probability; `cut` is the
    model's own probability there. Without a calibrator they are one.
    """

    model: Model
    onnx: bytes
    cut: float
    calibrator: Calibrator | None = None

    @property
    def threshold(self) -> float:
        """The served probability from which it says yes: rounded as those that it is compared to,
        so that no row that reaches the cut falls below it."""
        if self.calibrator is None:
            return self.cut
        return float(np.float32(calibrate(self.calibrator, np.array([self.cut]))[0]))

    def served(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what is served where the model gives these probabilities [N]."""
        if self.calibrator is None:
            return probabilities
        return calibrate(self.calibrator, probabilities)


LOGISTIC = "logistic regression without history"
NO_HISTORY = "LightGBM without history"


@dataclass(kw_only=True)
class Training(Run):
    """The context of the seven steps. Each leaves its results for those after it.

    `data_dir` is the server's: the run's own folder is `bundles/RUN` in it. `schema_ids` are the
    registry's, by hash, as it gave them when the definitions were applied.
    """

    recipe: Recipe
    data_dir: Path
    threads: int = 2
    schema_ids: Mapping[str, int] = field(default_factory=dict)
    # ingest
    events: dict[str, pa.Table] = field(default_factory=dict)
    spine: pa.Table = field(init=False)
    # validate_data
    definitions: Definitions = field(init=False)
    service: CompiledService = field(init=False)
    # transform
    features: FeatureBatch = field(init=False)
    matrix: NDArray[np.float32] = field(init=False)
    # train
    trained: dict[str, Trained] = field(default_factory=dict)
    # evaluate: probabilities of the whole spine, by candidate
    predictions: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    baselines: dict[str, Evaluation] = field(default_factory=dict)
    # validate_model
    parity: dict[str, ParityReport] = field(default_factory=dict)
    # register
    bundles: dict[str, Path] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the run's bundles and its record go."""
        return self.data_dir / "bundles" / self.run_id

    @property
    def offline(self) -> Path:
        """The root of the offline store that `transform` fills: the server's own, `offline`, holds
        what was pushed."""
        return self.data_dir / "training"

    @property
    def labels(self) -> NDArray[np.bool_]:
        """The spine's labels, bool [N]."""
        return self.spine[self.recipe.label].to_numpy().astype(bool)

    def times(self, column: str = "event_time") -> NDArray[np.int64]:
        """A time column of the spine, int64 µs [N]."""
        return self.spine[column].to_numpy().astype(np.int64)

    def training_rows(self, candidate: Candidate) -> NDArray[np.int64]:
        """The rows a candidate learns from: decided in its period, and known by its end."""
        period = candidate.train
        known = self.times(self.recipe.label_time) < to_us(period.end)
        return np.flatnonzero(period.rows(self.times()) & known)

    def period_rows(self, period: Period) -> NDArray[np.int64]:
        """The rows decided in a period."""
        return np.flatnonzero(period.rows(self.times()))


@dataclass(frozen=True)
class Results:
    """What a finished run gives: see the fields' names; rows are those of the champion's test."""

    bundles: dict[str, Path]
    digests: dict[str, str]
    evaluations: dict[str, Evaluation]
    baselines: dict[str, Evaluation]
    parity: dict[str, ParityReport]
    spine: pa.Table
    features: FeatureBatch
    predictions: dict[str, NDArray[np.float32]]
    events: dict[str, pa.Table]
    service: CompiledService
    offline: Path
    run: dict[str, Any]
