"""Incidents: when people are told, once per cause, and with what moved.

The rule. A signal is *over* when its |t| reaches the threshold that the alarm budget gives it and
its effect is large enough to matter (`monitor.signals`). An incident opens on the first day that a
signal is over, is updated while it lasts, and resolves after 7 days in a row on which every signal
is below half its threshold: the recent window then holds only clean days. Drift of features alone
never opens one. Everything here is a pure function of day profiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Literal

import msgspec

from headrace.errors import InternalError
from monitor.causes import (
    MovedFeature,
    SliceFinding,
    moved_features,
    ranked_causes,
    slices_by_arm,
)
from monitor.daily import DayProfile
from monitor.files import replace_file
from monitor.log import model_folder
from monitor.profile import Profile
from monitor.signals import CALIBRATION, PREDICTION_MEAN, Budget, Signal

CLEAN_DAYS = 7
_CLEAN_STRENGTH = 0.5

Transition = Literal["quiet", "opened", "lasts", "resolved"]


class Incident(msgspec.Struct):
    """One incident of one model. Days are UTC dates of event time."""

    id: str
    model: str
    opened: date
    updated: date  # the last day it was looked at while open
    resolved: date | None
    severity: Literal["medium", "high"]  # high when both signals led
    led_by: list[str]  # the signals that were over, in the order in which they came to be
    signals: list[Signal]  # each signal on the day it was strongest
    moved: list[MovedFeature]  # ranked, on the strongest day of what led
    slices: list[SliceFinding]
    findings: list[str]  # a sentence each
    summary: str
    budget: Budget


class Episode:
    """The hysteresis of one model: open at strength 1, resolved by seven days below ½."""

    def __init__(self) -> None:
        self._open = False
        self._clean_days = 0

    def step(self, strength: float | None) -> Transition:
        """Return what the next day does. `None` is a day that cannot be judged: no change."""
        if not self._open:
            if strength is None or strength < 1:
                return "quiet"
            self._open, self._clean_days = True, 0
            return "opened"
        if strength is not None:
            self._clean_days = self._clean_days + 1 if strength < _CLEAN_STRENGTH else 0
        if self._clean_days < CLEAN_DAYS:
            return "lasts"
        self._open = False
        return "resolved"


def find_incidents(
    model: str,
    profile: Profile,
    days: Sequence[DayProfile],
    judged: Sequence[tuple[date, Sequence[Signal]]],
    budget: Budget,
) -> list[Incident]:
    """Return the incidents of `model`, the oldest first.

    `judged` holds each day to judge, ascending, with its signals; `days` the day profiles (baseline
    included) from which causes are told.
    """
    incidents: list[Incident] = []
    episode = Episode()
    for day, found in judged:
        transition = episode.step(max((s.strength for s in found), default=None))
        if transition == "quiet":
            continue
        if transition == "opened":
            incidents.append(_opened(model, day, budget))
        incident = incidents[-1]
        incident.updated = day
        if transition == "resolved":
            incident.resolved = day
        _take_in(incident, found)
    for incident in incidents:
        _explain(incident, profile, days)
    return incidents


class IncidentStore:
    """The incidents of all models as JSON files under `root` (the data directory's `monitor/`)."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def save(self, model: str, incidents: Sequence[Incident]) -> None:
        """Replace the incidents of `model`, atomically."""
        path = self._root / model_folder(model) / "incidents.json"
        replace_file(path, msgspec.json.format(msgspec.json.encode(list(incidents))))

    def list(self, model: str | None = None) -> list[Incident]:
        """Return the incidents of one or all models, the oldest first."""
        folder = "model=*" if model is None else model_folder(model)
        found: list[Incident] = []
        for path in sorted(self._root.glob(f"{folder}/incidents.json")):
            try:
                found += msgspec.json.decode(path.read_bytes(), type=list[Incident])
            except msgspec.MsgspecError as error:
                raise InternalError(
                    "incidents cannot be read",
                    where=f"{path.parent.name}/{path.name}",
                    mend="remove the file and run the monitor again",
                ) from error
        return sorted(found, key=lambda incident: (incident.opened, incident.id))


def _opened(model: str, day: date, budget: Budget) -> Incident:
    return Incident(
        id=f"{model}-{day}",
        model=model,
        opened=day,
        updated=day,
        resolved=None,
        severity="medium",
        led_by=[],
        signals=[],
        moved=[],
        slices=[],
        findings=[],
        summary="",
        budget=budget,
    )


def _take_in(incident: Incident, found: Sequence[Signal]) -> None:
    """Update an incident with one day's signals: who leads, and each signal's strongest day."""
    strongest = {signal.name: signal for signal in incident.signals}
    for signal in sorted(found, key=lambda signal: -signal.strength):
        if signal.over and signal.name not in incident.led_by:
            incident.led_by.append(signal.name)
        before = strongest.get(signal.name)
        if before is None or signal.strength > before.strength:
            strongest[signal.name] = signal
    incident.signals = list(strongest.values())
    incident.severity = "high" if len(incident.led_by) > 1 else "medium"


def _explain(incident: Incident, profile: Profile, days: Sequence[DayProfile]) -> None:
    """Write what moved, by slice and in words, as of the strongest day of what led."""
    leaders = [signal for signal in incident.signals if signal.name in incident.led_by]
    peak = max(leaders, key=lambda signal: signal.strength)
    change = next((s.change for s in leaders if s.name == PREDICTION_MEAN), None)
    incident.moved = ranked_causes(moved_features(profile, days, peak.day), change)
    incident.slices = slices_by_arm(days, peak.day)
    incident.findings = [
        *(_signal_sentence(signal) for signal in leaders),
        *(_feature_sentence(move, change) for move in incident.moved[:5]),
        *(_slice_sentence(found) for found in incident.slices),
    ]
    names = " and ".join(_TITLES[name] for name in incident.led_by)
    causes = ", ".join(move.feature for move in incident.moved[:3]) or "no feature beyond its noise"
    until = f"resolved on {incident.resolved}" if incident.resolved else "open"
    incident.summary = (
        f"{incident.model}: {names} left the trailing 28 days on {incident.opened} ({until}); "
        f"what moved most: {causes}."
    )


_TITLES = {PREDICTION_MEAN: "the mean prediction", CALIBRATION: "the calibration"}


def _signal_sentence(signal: Signal) -> str:
    test = f"t = {signal.statistic:.1f}, alarm at {signal.threshold:.1f}"
    window = f"7 days to {signal.day} against the 28 before"
    verb = "rose" if signal.change > 0 else "fell"
    if signal.name == PREDICTION_MEAN:
        what = f"The mean prediction {verb} from {signal.baseline:.3f} to {signal.value:.3f}"
    else:
        what = (
            f"Observed minus predicted share {verb} from {signal.baseline:+.3f} "
            f"to {signal.value:+.3f}"
        )
    return f"{what} ({window}; {test})."


def _feature_sentence(move: MovedFeature, change: float | None) -> str:
    parts = []
    if move.baseline_mean is not None and move.recent_mean is not None:
        parts.append(f"mean {move.baseline_mean:.4g} → {move.recent_mean:.4g}")
    if abs(move.recent_null_share - move.baseline_null_share) >= 0.01:
        parts.append(f"nulls {move.baseline_null_share:.1%} → {move.recent_null_share:.1%}")
    parts.append(f"PSI {move.psi:.2f}")
    sentence = f"{move.feature} moved: {', '.join(parts)}"
    if change is not None:
        sentence += f"; its move alone goes with {move.explains:+.3f} of the mean's {change:+.3f}"
    return f"{sentence}."


def _slice_sentence(found: SliceFinding) -> str:
    facts = [
        f"{title} {'?' if before is None else f'{before:{form}}'} → {now:{form}}"
        for title, before, now, form in (
            ("mean prediction", found.baseline_prediction_mean, found.prediction_mean, ".3f"),
            (
                "observed minus predicted",
                found.baseline_calibration_error,
                found.calibration_error,
                "+.3f",
            ),
        )
        if now is not None
    ]
    return f"{found.by} {found.value or '(none)'}: {found.rows} predictions, {', '.join(facts)}."
