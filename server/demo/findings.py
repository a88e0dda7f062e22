"""What one run of the demo found: plain values that both reports print and every check reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import Enum

import numpy as np


class Verdict(Enum):
    """How a check ended. `SKIP` says that a short run (`--days`) cannot tell."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True)
class Check:
    """One claim of the demo: what was wanted, what was measured, and whether that is enough."""

    name: str
    section: str
    wanted: str
    measured: str
    verdict: Verdict

    @staticmethod
    def of(name: str, section: str, *, wanted: str, measured: str, holds: bool | None) -> Check:
        """Return the check; `holds` None means that this run cannot tell."""
        verdict = Verdict.SKIP if holds is None else Verdict.PASS if holds else Verdict.FAIL
        return Check(name, section, wanted, measured, verdict)


@dataclass(frozen=True)
class Timing:
    """How long one step of the demo took."""

    step: str
    seconds: float


@dataclass(frozen=True)
class ModelScore:
    """One model on the test flights. `low` and `high` bound the AUC with 95 % confidence."""

    name: str
    auc: float
    low: float
    high: float
    log_loss: float
    baseline: bool

    @property
    def title(self) -> str:
        """The name, and whether this is what the model has to beat."""
        return f"{self.name} (baseline)" if self.baseline else self.name


@dataclass(frozen=True)
class CalibrationBin:
    """Flights with similar predictions: their mean prediction, and how many were late."""

    predicted: float
    observed: float
    rows: int


@dataclass(frozen=True)
class Slice:
    """The AUC of the served model on a part of the flights."""

    group: str
    name: str
    auc: float
    rows: int


@dataclass(frozen=True)
class ArmResult:
    """One arm of the release, over the flights that it answered."""

    arm: str
    title: str
    version: str
    role: str
    rows: int
    auc_online: float
    auc_offline: float
    equal_rows: int
    prediction_mean: float
    late_share: float
    calibration: Sequence[CalibrationBin]
    weekly_auc: Sequence[tuple[date, float]]


@dataclass(frozen=True)
class DayPoint:
    """One UTC day of the replay. `late_share` is None until truth has come."""

    day: date
    rows: int
    prediction_mean: float
    late_share: float | None
    canary_rows: int
    # None on a day without a canary; the mean of the logged propensities else.
    canary_planned: float | None


@dataclass(frozen=True)
class MovedFeature:
    """A feature that an incident names: how far it moved, and by how much it counts as moved."""

    name: str
    score: float
    threshold: float
    change: str


@dataclass(frozen=True)
class IncidentView:
    """An incident as the report shows it."""

    day: date
    title: str
    signals: Sequence[str]
    moved: Sequence[MovedFeature]


@dataclass(frozen=True)
class SkewView:
    """The last seven days against the training data: `first` are (feature, PSI, its alarm)."""

    day: date
    features: int
    flagged: int
    first: Sequence[tuple[str, float, float]]


@dataclass(frozen=True)
class LatencySeries:
    """Latencies of one kind of call, in nanoseconds."""

    name: str
    detail: str
    nanoseconds: np.ndarray

    def percentile_ms(self, percent: float) -> float:
        """Return the percentile in milliseconds; NaN without calls."""
        if not len(self.nanoseconds):
            return float("nan")
        return float(np.percentile(self.nanoseconds, percent)) / 1e6


@dataclass(frozen=True)
class GovernanceEvent:
    """One line of the audit trail: who did what to which version, and why."""

    when: str
    actor: str
    action: str
    subject: str
    why: str
    refused: bool = False


@dataclass(frozen=True)
class Consistency:
    """How the logged feature rows compare, bit for bit, with the offline point-in-time rows."""

    rows: int
    features: int
    equal_rows: int
    # (feature, how many rows differ), most first.
    differing: Sequence[tuple[str, int]] = ()


@dataclass(frozen=True)
class Throughput:
    """What the replay did, and how long it took."""

    predictions: int
    decision_minutes: int
    events: int
    truths: int
    seconds: float


@dataclass
class Findings:
    """Everything that the reports show."""

    title: str
    # What was replayed, and what the models were tested on: the same in a whole run.
    period: tuple[date, date]
    tested: tuple[date, date]
    canary_from: date
    # A short run releases the challenger on flights that it was trained on: its AUC flatters it.
    canary_early: bool
    model: str
    machine: str
    versions: str
    data_dir: str
    # Copied from the monitor's settings: how many incidents quiet weeks may open, in words.
    alarm_budget: str
    scores: Sequence[ModelScore]
    slices: Sequence[Slice]
    arms: Sequence[ArmResult]
    consistency: Consistency
    days: Sequence[DayPoint]
    incidents: Sequence[IncidentView]
    # None where the monitor has no day to compare.
    skew: SkewView | None
    latencies: Sequence[LatencySeries]
    throughput: Throughput
    governance: Sequence[GovernanceEvent]
    replayed: str
    addresses: dict[str, str] = field(default_factory=dict)
    keep: bool = False
    checks: list[Check] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)

    @property
    def failed(self) -> list[Check]:
        """The checks that did not hold."""
        return [check for check in self.checks if check.verdict is Verdict.FAIL]
