"""The demo's claims as checks. Each takes what was measured and says whether it is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

import numpy as np

from server.demo.analysis import Logged, Share
from server.demo.charts import day_text, percent
from server.demo.findings import ArmResult, Check, Consistency, IncidentView

HISTORY_AUC_GAIN_MIN = 0.06
AUC_DELTA_MAX = 1e-6
SHARE_DEVIATIONS_MAX = 4.0
PARITY_DELTA_MAX = 1e-5
QUIET_FROM, QUIET_THROUGH = date(2013, 10, 1), date(2013, 11, 30)
DRIFT_FROM, DRIFT_BY = date(2013, 12, 1), date(2013, 12, 15)
_MOVED_NAMED = 3


def history_is_worth_it(with_history: float, logistic: float) -> Check:
    """The model that knows the history must beat the logistic regression that does not."""
    gain = with_history - logistic
    return Check.of(
        "History is worth it",
        "model",
        wanted=f"AUC at least {HISTORY_AUC_GAIN_MIN} above the logistic regression without history",
        measured=f"{with_history:.4f} against {logistic:.4f}: {gain:.4f} above",
        holds=gain >= HISTORY_AUC_GAIN_MIN,
    )


def program_is_the_model(rows: int, flips: int, delta_max: float) -> Check:
    """What is served (ONNX) must be what was trained (LightGBM)."""
    return Check.of(
        "The served program is the trained model",
        "model",
        wanted=f"ONNX against LightGBM: no label flips, |Δ| ≤ {PARITY_DELTA_MAX:g}",
        measured=f"{flips} flips, |Δ| ≤ {delta_max:.2g} on {rows:,} rows",
        holds=flips == 0 and delta_max <= PARITY_DELTA_MAX,
    )


def bit_for_bit(found: Consistency) -> Check:
    """Every logged feature row must equal its offline point-in-time row."""
    measured = f"{found.equal_rows:,} of {found.rows:,} rows, {found.features} features each"
    if found.differing:
        worst = ", ".join(f"{name} ({rows:,})" for name, rows in found.differing[:3])
        measured += f"; differing: {worst}"
    return Check.of(
        "Online features are the offline features",
        "consistency",
        wanted="100 % of the logged rows bit-equal to the offline rows",
        measured=measured,
        holds=0 < found.rows == found.equal_rows,
    )


def same_quality(arms: Sequence[ArmResult]) -> Check:
    """The AUC of what was served must be the AUC that was promised, on the same flights."""
    deltas = {arm.title: abs(arm.auc_online - arm.auc_offline) for arm in arms}
    measured = "; ".join(
        f"{arm.title} {arm.auc_online:.6f} online, {arm.auc_offline:.6f} offline" for arm in arms
    )
    # A NaN (an arm without both outcomes) is not ≤ anything.
    holds = bool(arms) and all(delta <= AUC_DELTA_MAX for delta in deltas.values())
    return Check.of(
        "Each arm is as good online as offline",
        "consistency",
        wanted=f"|AUC online − offline| ≤ {AUC_DELTA_MAX:g} per arm, on the same flights",
        measured=measured,
        holds=holds,
    )


def nothing_lost(
    logged: Logged, outputs: np.ndarray, arms: np.ndarray, truths: int, unjoined: int
) -> Check:
    """One log row and one outcome for every answer, and the log says what the client was told."""
    total = len(outputs)
    different = (logged.outputs != outputs) | (logged.arms != arms)
    other = int(different.sum()) - logged.missing
    faults = {
        "rows missing": logged.missing,
        "rows twice": logged.repeated,
        "rows of nobody": logged.foreign,
        "answers that differ": other,
        "outcomes not accepted": total - truths,
        "outcomes not joined": unjoined,
    }
    bad = ", ".join(f"{count:,} {name}" for name, count in faults.items() if count)
    return Check.of(
        "Nothing is lost on the way to the log",
        "consistency",
        wanted="one log row and one outcome for every answer, with the answer's arm and bits",
        measured=bad or f"{total:,} answers, {total:,} rows, {truths:,} outcomes",
        holds=not bad,
    )


def split_is_the_plan(shares: Sequence[Share]) -> Check:
    """Each arm's share must be what chance allows around the plan."""
    split = [share for share in shares if 0 < share.weight < 1]
    whole = [share for share in shares if share.weight >= 1]
    parts = [
        f"{s.title} {percent(s.rows / s.of, 2)} of {s.of:,}, planned {percent(s.weight)} "
        f"({s.deviations:+.2f} sd)"
        for s in split
    ]
    parts += [f"alone before: {s.title} {s.rows:,} of {s.of:,}" for s in whole]
    holds = all(abs(share.deviations) <= SHARE_DEVIATIONS_MAX for share in shares)
    return Check.of(
        "The traffic split is the plan",
        "traffic",
        wanted=f"each arm's share within {SHARE_DEVIATIONS_MAX:g} standard deviations of the plan",
        measured="; ".join(parts) or "no release was split",
        holds=holds if split else None,
    )


def propensities_are_exact(logged: Logged, plans: Mapping[int, Mapping[str, float]]) -> Check:
    """The logged propensity must be the plan's weight of the arm that answered."""
    wrong = np.ones(len(logged.plans), bool)
    for number, weights in plans.items():
        for version, weight in weights.items():
            rows = (logged.plans == number) & (logged.versions == version)
            wrong[rows] = np.abs(logged.propensities[rows] - weight) > 1e-12
    return Check.of(
        "The logged propensity is exact",
        "traffic",
        wanted="every row holds the probability with which its arm was drawn",
        measured=f"{int((~wrong).sum()):,} of {len(wrong):,} rows",
        holds=len(wrong) > 0 and not wrong.any(),
    )


def quiet_weeks(incidents: Sequence[IncidentView], budget_per_90_days: float, end: date) -> Check:
    """October and November may open no more incidents than the budget grants."""
    days = (QUIET_THROUGH - QUIET_FROM).days + 1
    granted = budget_per_90_days * days / 90
    opened = [i for i in incidents if QUIET_FROM <= i.day <= QUIET_THROUGH]
    named = ", ".join(day_text(i.day) for i in opened)
    return Check.of(
        "Quiet weeks stay quiet",
        "drift",
        wanted=f"no more incidents than the alarm budget ({budget_per_90_days:g} in 90 quiet days) "
        f"grants October and November: {granted:.2f} in {days} days",
        measured=f"{len(opened)} opened" + (f" ({named})" if named else ""),
        holds=len(opened) <= granted if end >= QUIET_THROUGH else None,
    )


def drift_is_noticed(
    incidents: Sequence[IncidentView], led_by: Sequence[Sequence[str]], end: date
) -> Check:
    """December must open an incident in time, led by prediction and calibration, with causes."""
    found = [
        (view, leads)
        for view, leads in zip(incidents, led_by, strict=True)
        if DRIFT_FROM <= view.day <= DRIFT_BY
    ]
    measured, holds = "no incident", False
    if found:
        view, leads = found[0]
        moved = ", ".join(m.name for m in view.moved[:_MOVED_NAMED])
        measured = f"{day_text(view.day)}, led by {' and '.join(leads).replace('_', ' ')}"
        measured += f"; moved: {moved}" if moved else "; names nothing"
        holds = set(leads) == {"prediction_mean", "calibration"} and bool(view.moved)
    return Check.of(
        "The drift of December is noticed",
        "drift",
        wanted=f"an incident by {day_text(DRIFT_BY)}, led by the prediction's mean and "
        "calibration, that names what moved",
        measured=measured,
        holds=holds if end >= DRIFT_BY else None,
    )


def four_eyes(refusal: str | None) -> Check:
    """Nobody may approve their own work."""
    return Check.of(
        "An author cannot approve their own version",
        "governance",
        wanted="refused",
        measured=f"refused: {refusal}" if refusal else "it went through",
        holds=refusal is not None,
    )


def rolled_back(before: Mapping[str, float], after: Mapping[str, float]) -> Check:
    """A roll-back must bring the earlier weights back."""

    def show(weights: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {percent(w)}" for name, w in weights.items()) or "nothing"

    return Check.of(
        "A release can be rolled back",
        "governance",
        wanted=f"the release before the canary is live again: {show(before)}",
        measured=show(after),
        holds=dict(before) == dict(after),
    )


def one_answer_again(replayed: str, exit_code: int, words: str) -> Check:
    """`headrace replay` must give the logged bits."""
    return Check.of(
        "One answer can be replayed",
        "consistency",
        wanted="headrace replay gives the logged bits again",
        measured=f"{replayed}: {words}",
        holds=exit_code == 0,
    )


def standard_clients(answers: Mapping[str, float | None], promised: Sequence[float]) -> Check:
    """tritonclient must infer on the served model, unchanged; None: not installed."""
    parts = [
        f"{name} {'not installed' if value is None else f'{value:.8f}'}"
        for name, value in answers.items()
    ]
    known = [value for value in answers.values() if value is not None]
    holds = all(any(np.float32(value) == np.float32(p) for p in promised) for value in known)
    return Check.of(
        "Standard clients work unchanged",
        "speed",
        wanted="tritonclient.grpc and tritonclient.http infer on the served model",
        measured=", ".join(parts),
        holds=False if not holds else None if len(known) < len(answers) else True,
    )
