"""Inference log, truth, reference profiles, skew, drift, incidents; owner of the log's schema."""

from monitor.calibration import auc, calibration_bins, log_loss, spiegelhalter_z
from monitor.causes import FeatureDistance, MovedFeature, SliceFinding
from monitor.daily import (
    DayProfile,
    Decode,
    day_profile,
    decode_days,
    encode_days,
    merge_days,
    score_days,
)
from monitor.incidents import Incident, IncidentStore
from monitor.job import ArmDay, DayReport, MonitorResult, last_result, run
from monitor.log import LogWriter, find_prediction, log_dates, log_models, read_log
from monitor.profile import (
    Profile,
    build_profile,
    profile_from_table,
    read_profile,
    write_profile,
)
from monitor.schema import (
    CACHED,
    EXPLAINED,
    FALLBACK,
    FORCED,
    LOG_SCHEMA,
    RETRY,
    SHADOW,
    TRUTH_SCHEMA,
    empty_log,
    log_batch,
)
from monitor.signals import Budget, Signal
from monitor.totals import Totals
from monitor.truth import Truth, TruthLog, TruthRead, join_truth, read_truth

__all__ = [
    "CACHED",
    "EXPLAINED",
    "FALLBACK",
    "FORCED",
    "LOG_SCHEMA",
    "RETRY",
    "SHADOW",
    "TRUTH_SCHEMA",
    "ArmDay",
    "Budget",
    "DayProfile",
    "DayReport",
    "Decode",
    "FeatureDistance",
    "Incident",
    "IncidentStore",
    "LogWriter",
    "MonitorResult",
    "MovedFeature",
    "Profile",
    "Signal",
    "SliceFinding",
    "Totals",
    "Truth",
    "TruthLog",
    "TruthRead",
    "auc",
    "build_profile",
    "calibration_bins",
    "day_profile",
    "decode_days",
    "empty_log",
    "encode_days",
    "find_prediction",
    "join_truth",
    "last_result",
    "log_batch",
    "log_dates",
    "log_loss",
    "log_models",
    "merge_days",
    "profile_from_table",
    "read_log",
    "read_profile",
    "read_truth",
    "run",
    "score_days",
    "spiegelhalter_z",
    "write_profile",
]
