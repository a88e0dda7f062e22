"""Turns what the replay left behind into findings: log, truth, the monitor's word, the run's."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from headrace.times import utc_date
from monitor.distance import PSI_EFFECT
from monitor.log import read_log
from monitor.truth import join_truth, read_truth
from server.demo import analysis
from server.demo.analysis import Logged
from server.demo.charts import percent
from server.demo.findings import (
    ArmResult,
    Consistency,
    DayPoint,
    IncidentView,
    LatencySeries,
    ModelScore,
    MovedFeature,
    SkewView,
    Slice,
)
from server.demo.replay import Answers

_LOG_COLUMNS = [
    "prediction_id", "flags", "event_time", "version", "plan", "arm", "propensity", "features",
    "outputs",
]  # fmt: skip
_CARRIERS_SHOWN = 10
_MOVED_SHOWN = 6
# The replay's last hours fall on one more UTC date; a day that thin is no day to plot.
_DAY_ROWS_SHARE_MIN = 0.1


@dataclass(frozen=True)
class Judged:
    """The replay as the log has it, against what was promised offline."""

    logged: Logged
    truth: np.ndarray
    consistency: Consistency
    arms: Sequence[ArmResult]
    days: Sequence[DayPoint]


def read_back(data_dir: Path, model: str, answers: Answers) -> tuple[Logged, np.ndarray]:
    """Return the log in the spine's order, and the truth joined to it (NaN: none)."""
    log = read_log(data_dir / "log", model, columns=_LOG_COLUMNS)
    logged = analysis.align(log, answers.prediction_ids)
    truth = join_truth(log, read_truth(data_dir / "wal").latest)
    # join_truth speaks the log's order: bring it into the spine's by the same way.
    ids: Any = log.column("prediction_id").to_pylist()
    by_id = dict(zip(ids, truth.tolist(), strict=True))
    ordered = [by_id.get(i, float("nan")) for i in answers.prediction_ids.tolist()]
    return logged, np.array(ordered, np.float64)


def is_all_logged(data_dir: Path, model: str, rows: int) -> bool:
    """Whether as many rows and outcomes as were answered are on disk."""
    log = read_log(data_dir / "log", model, columns=["prediction_id"])
    return log.num_rows >= rows and read_truth(data_dir / "wal").latest.num_rows >= rows


def judge(
    logged: Logged,
    truth: np.ndarray,
    spine: Any,
    offline_rows: Sequence[bytes],
    columns: Sequence[str],
    scores: Mapping[str, np.ndarray],
    titles: Mapping[str, tuple[str, str]],
    plans: Mapping[int, Mapping[str, float]],
) -> Judged:
    """Compare online with offline; see `analysis` for the parts."""
    times_us = spine.column("event_time").to_numpy()
    labels = spine.column("late").to_numpy(zero_copy_only=False)
    equal = analysis.equal_rows(logged.rows, offline_rows)
    canary = list(titles)[1] if len(titles) > 1 else None
    planned = np.full(len(times_us), np.nan)
    for number, weights in plans.items():
        if canary is not None and canary in weights:
            planned[logged.plans == number] = weights[canary]
    days = analysis.day_points(logged, truth, times_us, canary, planned)
    least = _DAY_ROWS_SHARE_MIN * float(np.median([day.rows for day in days]))
    return Judged(
        logged,
        truth,
        analysis.consistency(logged.rows, offline_rows, columns),
        analysis.arm_results(logged, truth, equal, scores, labels, times_us, titles),
        [day for day in days if day.rows >= least],
    )


def model_scores(results: Any) -> list[ModelScore]:
    """Return the champion and its baselines on the same test flights, best first."""
    found = [_score("LightGBM with history", results.evaluations["champion"], baseline=False)]
    found += [_score(name, each, baseline=True) for name, each in results.baselines.items()]
    return sorted(found, key=lambda score: -score.auc)


def _score(name: str, evaluation: Any, *, baseline: bool) -> ModelScore:
    auc = evaluation.auc
    shown = name[:1].upper() + name[1:]
    return ModelScore(
        shown, auc.value, auc.low, auc.high, evaluation.log_loss.value, baseline=baseline
    )


def slices(results: Any) -> list[Slice]:
    """Return the champion's AUC by origin and by its largest carriers."""
    found = []
    for key, metric in results.evaluations["champion"].auc.slices.items():
        group, _, name = key.partition("=")
        found.append(Slice(group, name, metric.value, metric.rows or 0))
    found.sort(key=lambda part: (part.group != "origin", part.group, -part.rows))
    carriers = [part for part in found if part.group == "carrier"][:_CARRIERS_SHOWN]
    return [part for part in found if part.group == "origin"] + carriers


def incident_views(incidents: Sequence[Mapping[str, Any]]) -> list[IncidentView]:
    """Return the monitor's incidents for the report, oldest first."""
    return [
        IncidentView(
            day=date.fromisoformat(incident["opened"]),
            title=f"drift of {' and '.join(_PLAIN.get(s, s) for s in incident['led_by'])}",
            signals=[_signal(signal) for signal in incident["signals"]],
            moved=_moved_most(incident["moved"][:_MOVED_SHOWN]),
        )
        for incident in sorted(incidents, key=lambda i: str(i["opened"]))
    ]


_PLAIN = {"prediction_mean": "the mean prediction", "calibration": "the calibration"}


def _signal(signal: Mapping[str, Any]) -> str:
    name, value, baseline = signal["name"], signal["value"], signal["baseline"]
    strength = f"t = {signal['statistic']:.1f}, alarm at {signal['threshold']:.1f}"
    if name == "calibration":
        return (
            f"late share above the prediction by {100 * value:+.1f} points in 7 days, "
            f"{100 * baseline:+.1f} in the 28 before ({strength})"
        )
    return (
        f"mean prediction {percent(value, 1)} in 7 days, {percent(baseline, 1)} in the 28 before "
        f"({strength})"
    )


def _moved_most(leads: Sequence[Mapping[str, Any]]) -> list[MovedFeature]:
    """Return the monitor's likeliest leads, the one that moved furthest first."""
    return sorted(map(_moved, leads), key=lambda moved: -moved.score)


def _moved(feature: Mapping[str, Any]) -> MovedFeature:
    before, now = feature["baseline_mean"], feature["recent_mean"]
    change = f"{_short(before)} → {_short(now)}"
    return MovedFeature(feature["feature"], feature["psi"], PSI_EFFECT, change)


def _short(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def skew_view(reports: Sequence[Mapping[str, Any]], features: int) -> SkewView | None:
    """Return how the last day's week differs from the training data, the furthest first."""
    compared = [report for report in reports if report["skew"]]
    if not compared:
        return None
    last = max(compared, key=lambda report: str(report["date"]))
    first = [(d["feature"], d["psi"], max(d["critical"], PSI_EFFECT)) for d in last["skew"][:6]]
    return SkewView(date.fromisoformat(last["date"]), features, last["skewed"], first)


def latencies(answers: Answers) -> list[LatencySeries]:
    """Return the replay's calls as series."""
    return [
        LatencySeries(
            "Predict",
            "a minute's decisions, behind the barrier",
            np.array(answers.predict_ns, np.int64),
        ),
        LatencySeries("Push", "what became known since", np.array(answers.push_ns, np.int64)),
    ]


def machine() -> str:
    """Return what this runs on, in a few words."""
    cores = len(os.sched_getaffinity(0))
    return f"{cores} {'core' if cores == 1 else 'cores'}, {platform.machine()}"


def versions() -> str:
    """Return the versions that matter for the numbers."""
    names = ("headrace", "onnxruntime", "lightgbm", "numpy")
    parts = [f"{name} {version(name)}" for name in names]
    return f"Python {platform.python_version()}, {', '.join(parts)}"


def period(times_us: np.ndarray) -> tuple[date, date]:
    """Return the first and last UTC day of the decisions; a day of few hours does not count."""
    days, counts = np.unique(times_us // 86_400_000_000, return_counts=True)
    full = days[counts >= _DAY_ROWS_SHARE_MIN * np.median(counts)]
    first, last = int(full[0]), int(full[-1])
    return utc_date(first * 86_400_000_000), utc_date(last * 86_400_000_000)
