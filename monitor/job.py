"""One run of the monitor: log and truth in, day reports and incidents out.

A run is a pure function of the files and its arguments. What it computed of a day is kept under
`monitor/model=…/days/`, named by what it was computed from (log files, truth, profile), and
computed again when any of that changed: truth may come late, and a replay may add to an old day.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.digest import digest_json
from headrace.errors import InvalidArgumentError
from headrace.times import DAY_US
from monitor.calibration import CalibrationBin
from monitor.causes import (
    FeatureDistance,
    MovedFeature,
    drift_tickets,
    moved_features,
    skew,
    split_windows,
)
from monitor.daily import (
    DAY_COLUMNS,
    DayProfile,
    Decode,
    day_profile,
    decode_days,
    encode_days,
    merge_days,
)
from monitor.files import replace_file
from monitor.incidents import Incident, IncidentStore, find_incidents
from monitor.log import log_dates, log_files, model_folder, read_log
from monitor.profile import Profile
from monitor.signals import Budget, Signal, signals
from monitor.totals import Totals
from monitor.truth import TruthRead, count_names, join_truth, read_truth

_LOGGER = logging.getLogger(__name__)

# Changes when a DayProfile means something else, so that kept days of before are not used.
_DAY_FORMAT = 1
_SKEW_SHOWN = 20
# Truth is mature a day after the event: the truth of the last day at hand is not looked at.
_TRUTH_MATURITY = timedelta(days=1)


class ArmDay(msgspec.Struct):
    """One arm on one day; None where there is nothing to tell it from."""

    arm: str
    rows: int
    joined: int
    prediction_mean: float | None
    observed_share: float | None
    calibration_error: float | None
    auc: float | None
    log_loss: float | None


class DayReport(msgspec.Struct):
    """One UTC date of one model, all arms together (shadow left out), and by arm."""

    date: date
    rows: int
    joined: int
    invalid: int  # answered rows whose output is no probability
    prediction_mean: float | None
    observed_share: float | None
    calibration_error: float | None  # observed minus predicted share
    auc: float | None
    log_loss: float | None
    calibration: list[CalibrationBin]
    arms: list[ArmDay]
    signals: list[Signal]  # the last 7 days against the 28 before; empty with too few days
    skew: list[FeatureDistance]  # the last 7 days against training, the 20 largest
    skewed: int  # how many of all are flagged
    tickets: list[MovedFeature]  # features whose drift alone deserves a ticket


class MonitorResult(msgspec.Struct):
    """What a run found."""

    model: str
    through: date
    budget: Budget
    days: list[DayReport]
    incidents: list[Incident]
    rows: int
    joined: int
    truth_duplicates: int  # of all models: truth that repeats what was known
    truth_conflicts: int  # of all models: truth that corrects what was known
    truth_damaged_bytes: int
    truth_other_names: dict[str, int] = {}  # of this model: truth left out for its name, by name


def run(
    data_dir: Path,
    model: str,
    profile: Profile,
    decode: Decode,
    through: date,
    baseline_days: Sequence[DayProfile] = (),
    budget: Budget | None = None,
    truth_names: Sequence[str] = (),
    progress: Callable[[str, float], None] | None = None,
) -> MonitorResult:
    """Run the monitor over the log of `model` up to the day `through`, and keep what it found.

    `through` is the last UTC date whose event time is over; its predictions count, its truth is not
    mature yet and counts from the next day on. `baseline_days` stand in for days before the log
    (`score_days`); the log wins where both have a day. `progress` is told (what, share done).

    Where the model's truth has several names, the first of `truth_names` (what the model predicts)
    that occurs is joined, else the most frequent; the others are counted in the result.

    Raises InvalidArgumentError when baseline days are of another reference profile, or when
    `decode` does not fit the profile.
    """
    budget = budget or Budget()
    for day in baseline_days:
        if day.profile != profile.digest:
            raise InvalidArgumentError(
                "baseline day of another reference profile",
                where=str(day.date),
                expected=profile.digest,
                got=day.profile,
            )
    truth = read_truth(data_dir / "wal")
    tell = progress or (lambda _what, _share: None)
    truth_name, others = _choose_name(data_dir, model, through, truth, truth_names)
    logged = _logged_days(data_dir, model, profile, decode, through, truth, truth_name, tell)
    by_date = {day.date: day for day in [*baseline_days, *logged] if day.date <= through}
    days = [by_date[key] for key in sorted(by_date)]
    judged = [
        (day.date, signals(days, day.date, through - _TRUTH_MATURITY, budget)) for day in logged
    ]
    result = MonitorResult(
        model=model,
        through=through,
        budget=budget,
        days=[
            _report(profile, days, day, found)
            for day, (_, found) in zip(logged, judged, strict=True)
        ],
        incidents=find_incidents(model, profile, days, judged, budget),
        rows=sum(day.rows for day in logged),
        joined=sum(day.totals.joined for day in logged),
        truth_duplicates=truth.duplicates,
        truth_conflicts=truth.conflicts,
        truth_damaged_bytes=truth.damaged_bytes,
        truth_other_names=others,
    )
    IncidentStore(data_dir / "monitor").save(model, result.incidents)
    replace_file(_result_path(data_dir, model), msgspec.json.encode(result))
    tell("monitor", 1.0)
    return result


def last_result(data_dir: Path, model: str) -> MonitorResult | None:
    """Return what the last run of `model` found; None when there was none that can be read."""
    try:
        return msgspec.json.decode(_result_path(data_dir, model).read_bytes(), type=MonitorResult)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _choose_name(
    data_dir: Path, model: str, through: date, truth: TruthRead, wanted: Sequence[str]
) -> tuple[str | None, dict[str, int]]:
    """Return the name of the truth to join (None: it has one name), and the counts of others.

    A name that a sender misspelt once must not end the monitoring of a model.
    """
    if pc.count_distinct(truth.latest["name"]).as_py() < 2:
        return None, {}
    folder = data_dir / "log"
    dates = [day for day in log_dates(folder, model) if day <= through]
    counts = count_names(read_log(folder, model, dates, ["prediction_id"]), truth.latest)
    if len(counts) < 2:
        return None, {}
    most = max(counts, key=lambda name: counts[name])
    chosen = next((name for name in wanted if name in counts), most)
    others = {name: count for name, count in counts.items() if name != chosen}
    _LOGGER.warning("model %s: truth %r is joined, left out: %s", model, chosen, others)
    return chosen, others


def _logged_days(
    data_dir: Path,
    model: str,
    profile: Profile,
    decode: Decode,
    through: date,
    truth: TruthRead,
    truth_name: str | None,
    tell: Callable[[str, float], None],
) -> list[DayProfile]:
    dates = [day for day in log_dates(data_dir / "log", model) if day <= through]
    truth_counts = _truth_counts(truth.history)
    days = []
    for number, day in enumerate(dates):
        tell("day profiles", number / len(dates))
        source = digest_json(
            {
                "format": _DAY_FORMAT,
                "profile": profile.digest,
                "truth_name": truth_name,
                "truth": truth_counts.get(day.toordinal(), 0),
                "log": [
                    (file.parent.name, file.name, file.stat().st_size)
                    for file in log_files(data_dir / "log", model, day)
                ],
            }
        )
        folder = data_dir / "monitor" / model_folder(model) / "days"
        kept = folder / f"{day}-{source.removeprefix('sha256:')[:16]}.msgpack"
        found = _kept_day(kept)
        if found is None:
            log = read_log(data_dir / "log", model, [day], DAY_COLUMNS)
            labels = join_truth(log, truth.latest, truth_name)
            found = day_profile(day, log, labels, profile, decode)
            for old in folder.glob(f"{day}-*.msgpack"):
                old.unlink(missing_ok=True)
            replace_file(kept, encode_days([found]))
        days.append(found)
    return days


def _kept_day(path: Path) -> DayProfile | None:
    try:
        return decode_days(path.read_bytes())[0]
    except (FileNotFoundError, InvalidArgumentError):
        return None  # never computed, or damaged: computed again


def _truth_counts(history: pa.Table) -> dict[int, int]:
    """Return how many truth records there are per day of the prediction, by date ordinal."""
    ids = history["prediction_id"].filter(pc.is_valid(history["prediction_id"]))
    joined = b"".join(prediction_id for prediction_id in ids.to_pylist() if prediction_id)
    raw = np.frombuffer(joined, np.uint8).reshape(-1, 16)
    milliseconds = raw[:, :6].astype(np.int64) @ (256 ** np.arange(5, -1, -1, dtype=np.int64))
    epoch = date(1970, 1, 1).toordinal()
    ordinals, counts = np.unique(milliseconds // (DAY_US // 1000) + epoch, return_counts=True)
    return dict(zip(ordinals.tolist(), counts.tolist(), strict=True))


def _report(
    profile: Profile, days: Sequence[DayProfile], day: DayProfile, found: Sequence[Signal]
) -> DayReport:
    recent, _ = split_windows(days, day.date)
    distances = skew(profile, merge_days(recent))
    totals = day.totals
    return DayReport(
        date=day.date,
        rows=totals.rows,
        joined=totals.joined,
        invalid=day.invalid,
        prediction_mean=totals.prediction_mean,
        observed_share=totals.observed_share,
        calibration_error=totals.calibration_error,
        auc=totals.auc,
        log_loss=totals.log_loss,
        calibration=totals.calibration,
        arms=[_arm_day(arm, of_arm) for arm, of_arm in day.arms.items()],
        signals=list(found),
        skew=distances[:_SKEW_SHOWN],
        skewed=sum(distance.flagged for distance in distances),
        tickets=drift_tickets(moved_features(profile, days, day.date)),
    )


def _arm_day(arm: str, totals: Totals) -> ArmDay:
    return ArmDay(
        arm=arm,
        rows=totals.rows,
        joined=totals.joined,
        prediction_mean=totals.prediction_mean,
        observed_share=totals.observed_share,
        calibration_error=totals.calibration_error,
        auc=totals.auc,
        log_loss=totals.log_loss,
    )


def _result_path(data_dir: Path, model: str) -> Path:
    return data_dir / "monitor" / model_folder(model) / "result.json"
