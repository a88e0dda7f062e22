"""From what happened to the columns of the inference log (CONTRACTS §5)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from features import FeatureBatch
from monitor.schema import SHADOW
from router import LogPolicy, Routing
from server.attribution_log import AttributionLog, LoggedRows, attribution_columns
from server.execution.engine import Outputs
from server.execution.lots import Timing
from server.models.bundles import ReleasedModel
from server.models.explanations import Explanation
from server.models.versions import Version
from server.tap import Tap

Array = npt.NDArray[Any]
_NS_PER_US = 1000
_UINT32_MAX = (1 << 32) - 1


@dataclass(slots=True)
class Shot:
    """One run of one arm for some rows of a call. `status` is the gRPC code, 0 when answered."""

    model: ReleasedModel
    arm: int
    version: Version
    rows: list[int]
    flags: int
    status: int = 0
    output: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    decisions: list[str] = field(default_factory=list)
    feeds: list[Array] = field(default_factory=list)
    timing: Timing = field(default_factory=lambda: Timing(0, 0, 0, 0))
    explanation: Explanation | None = None

    def take(self, outputs: Outputs, feeds: list[Array]) -> None:
        """Take the first output as float32 [rows, width], and what the decision layer says."""
        first = outputs.arrays[0]
        deciding = self.version.deciding
        self.timing = outputs.timing
        self.feeds = feeds
        if first.dtype != object and first.ndim > 0 and len(first) == len(self.rows):
            self.output = first.reshape(len(first), -1).astype(np.float32, copy=False)
            if deciding == 0:
                self.decisions = self.version.decide(self.output)
        else:
            self.output = np.empty((len(self.rows), 0), np.float32)
        if deciding != 0:
            output = outputs.arrays[deciding]
            self.decisions = self.version.decide(output.reshape(len(self.rows), -1))


def hash64(data: bytes) -> int:
    """Return 64 bits of a key: the log shows which rows share one without showing the key."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def sampled(prediction_id: bytes, share: float, purpose: bytes) -> bool:
    """Return whether this prediction is in a sample of `share`; the same one everywhere."""
    if share >= 1.0:
        return True
    digest = hashlib.blake2b(prediction_id, digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "little") < share * 2.0**64


def log_shot(
    tap: Tap,
    shot: Shot,
    *,
    batch: FeatureBatch | None,
    ids: list[bytes],
    keys: list[bytes],
    routing: Routing,
    event_time_us: int,
    logged_time_us: int,
    features_ns: int,
    total_ns: int,
    trace_id: bytes | None,
    attributions: AttributionLog | None = None,
) -> None:
    """Hand the rows of one shot to the tap: those that the plan's sample takes.

    Those of its sample of attributions go there by way of `attributions`, unless they have them.
    """
    policy: LogPolicy = shot.model.plan.log
    rows = [row for row in shot.rows if sampled(ids[row], policy.sample, b"row")]
    if not rows:
        return
    timing = shot.timing
    weighted = shot.model.router.kind == "weighted"
    constants = {
        "attempt": 0,
        "event_time": event_time_us,
        "logged_time": logged_time_us,
        "model": shot.model.name,
        "version": shot.version.digest,
        "service": shot.version.service_label,
        "plan": shot.model.number,
        "policy": shot.model.router.kind,
        "arm": shot.model.arms[shot.arm].arm,
        "pmf": list(routing.pmf) if weighted else None,
        "flags": shot.flags,
        "sampling_probability": policy.sample,
        "queue_us": _us(timing.queue_ns),
        "features_us": _us(features_ns),
        "compute_us": _us(timing.input_ns + timing.infer_ns + timing.output_ns),
        "total_us": _us(total_ns),
        "status": shot.status,
        "worker": tap.worker,
        "trace_id": trace_id,
    }
    columns: dict[str, list[Any]] = {
        "prediction_id": [ids[row] for row in rows],
        "propensity": routing.propensity[rows].tolist(),
        "key_hash": [hash64(keys[row]) for row in rows],
    }
    if batch is not None:
        if len(rows) != len(batch):
            batch = batch.take(rows)
        constants["schema_id"] = shot.version.schema_id
        columns["features"] = batch.pack(shot.version.schema_id)
        columns["feature_status"] = batch.pack_status()
    elif policy.payload > 0.0 and shot.version.service is None:
        columns["inputs"] = _payloads(shot, ids, rows, policy.payload)
    places = _places(shot, rows)
    if len(shot.output):
        columns["outputs"] = [shot.output[place].tolist() for place in places]
        if shot.decisions:
            columns["decision"] = [shot.decisions[place] or None for place in places]
    _hand_over(tap, attributions, shot, constants, columns, places)


def _hand_over(
    tap: Tap,
    attributions: AttributionLog | None,
    shot: Shot,
    constants: dict[str, Any],
    columns: dict[str, list[Any]],
    places: Sequence[int],
) -> None:
    share = shot.model.plan.log.explain
    if shot.explanation is not None:
        columns |= attribution_columns(shot.explanation, places)
    elif share and attributions is not None and _is_explained(shot):
        chosen = [sampled(each, share, b"explain") for each in columns["prediction_id"]]
        if any(chosen):
            attributions.take(_taken(shot, constants, columns, places, chosen))
            columns = _picked(columns, [not each for each in chosen])
    left = len(columns["prediction_id"])
    if left:
        tap.log(left, constants, columns)


def _is_explained(shot: Shot) -> bool:
    answered = bool(shot.feeds) and shot.status == 0 and not shot.flags & SHADOW
    return answered and shot.version.model.explanations is not None


def _taken(
    shot: Shot,
    constants: dict[str, Any],
    columns: dict[str, list[Any]],
    places: Sequence[int],
    chosen: list[bool],
) -> LoggedRows:
    """Return the chosen rows apart from the others, with what the model got of them."""
    own = _picked(columns, chosen)
    at = list(itertools.compress(places, chosen))
    explanations = shot.version.model.explanations
    assert explanations is not None
    feeds = [feed[at] for feed in shot.feeds]
    return LoggedRows(constants, own, feeds, [*map(hash64, own["prediction_id"])], explanations)


def _picked(columns: dict[str, list[Any]], chosen: list[bool]) -> dict[str, list[Any]]:
    return {name: list(itertools.compress(values, chosen)) for name, values in columns.items()}


def _places(shot: Shot, rows: list[int]) -> Sequence[int]:
    """Return where in the shot these rows of the call are."""
    if len(rows) == len(shot.rows):
        return range(len(rows))
    at = {row: place for place, row in enumerate(shot.rows)}
    return [at[row] for row in rows]


def _us(duration_ns: int) -> int:
    return min(duration_ns // _NS_PER_US, _UINT32_MAX)


def _payloads(shot: Shot, ids: list[bytes], rows: list[int], share: float) -> list[bytes | None]:
    """Return each sampled row's numeric inputs back to back, in the graph's order."""
    return [
        b"".join(feed[place : place + 1].tobytes() for feed in shot.feeds if feed.dtype != object)
        if shot.feeds and sampled(ids[row], share, b"payload")
        else None
        for row, place in zip(rows, _places(shot, rows), strict=True)
    ]
