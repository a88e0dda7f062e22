"""The way of one request, in order, no turning back (CONTRACTS §3):

    route → features of that version's service → execution → reply → tap

Everything of a call moves together: its rows are routed at once, the features of one service are
read at once for all rows that need them, and the rows of one version run as one batch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from features import CompiledService, FeatureBatch, Table
from headrace.errors import (
    HeadraceError,
    InvalidArgumentError,
    PermissionDeniedError,
)
from headrace.ids import PredictionIds
from monitor.schema import EXPLAINED, FORCED, SHADOW
from router import Routing
from server.access.callers import current_caller, take_rows
from server.access.principal import Scope
from server.attribution_log import AttributionLog
from server.column_feeds import feeds_of_columns
from server.execution.engine import Asked
from server.explained import RowExplanation, row_explanations
from server.log_rows import Shot, log_shot
from server.models.bundles import ReleasedModel
from server.models.versions import Version
from server.tap import Tap
from server.watch import PREDICT, Seen, Watch, trace_id_of
from server.wire.handlers import Context, as_headrace_error

_LOG = logging.getLogger(__name__)
Array = npt.NDArray[Any]

ROWS_MAX = 16_384  # of one Predict call
SHADOWS_MAX = 256  # copies for shadow arms that are under way; beyond it they are not made
DEADLINE_NS = 30_000_000_000  # of a call that sets none: every wait has one
EVENT_TIME_US_MAX = 253_402_300_799_999_999  # the end of 9999: ids and the log's folders hold it
_NS_PER_US = 1000


@dataclass(slots=True)
class PredictCall:
    """One Predict. `inputs`: entity ids and request fields, one element a row."""

    model: str
    inputs: Table
    event_time_us: int | None = None
    min_offset: str = ""
    request_ids: Sequence[str] = ()
    version: str = ""
    return_features: bool = False
    explain: bool = False


@dataclass(slots=True)
class Prediction:
    """The answer: one element a row in every list; `outputs` is float32 [rows, width]."""

    model: str
    plan: int
    prediction_ids: list[bytes]
    versions: list[str]
    arms: list[str]
    outputs: npt.NDArray[np.float32]
    decisions: list[str]
    features: list[bytes] = field(default_factory=list)
    explanations: list[RowExplanation] = field(default_factory=list)


@dataclass(slots=True)
class Clocks:
    """Time as a worker sees it, and the ids that it makes; a test hands in its own."""

    ids: PredictionIds
    now_us: Callable[[], int] = lambda: time.time_ns() // _NS_PER_US


@dataclass(slots=True)
class _Way:
    """What the steps of one call share."""

    model: ReleasedModel
    rows: int
    event_time_us: int
    deadline_ns: int
    ids: list[bytes]
    keys: list[bytes]
    routing: Routing
    flags: int
    started_ns: int
    batches: dict[str, FeatureBatch] = field(default_factory=dict)  # by the service's hash
    features_ns: int = 0
    seen: Seen | None = None
    trace_id: bytes | None = None


class Models(Protocol):
    """What can be asked."""

    def get(self, name: str) -> ReleasedModel:
        """Return a model. Raises NotFoundError."""


class Features(Protocol):
    """Where features come from: a store, or a snapshot of it."""

    async def read(
        self,
        service: CompiledService,
        inputs: Table,
        event_time_us: npt.NDArray[np.int64],
        min_offset: str | None,
        deadline_ns: int,
    ) -> FeatureBatch:
        """Return the rows' features as of their event times."""


class Predictor:
    """Answers Predict."""

    def __init__(
        self,
        models: Models,
        features: Features,
        tap: Tap,
        clocks: Clocks,
        *,
        replay_scope: bool,
        watch: Watch | None = None,
        attributions: AttributionLog | None = None,
    ) -> None:
        self._models = models
        self._features = features
        self._tap = tap
        self._clocks = clocks
        self._replay_scope = replay_scope
        self._watch = watch or Watch()
        self._attributions = attributions
        self._shadows: set[asyncio.Task[None]] = set()
        self.shadows_skipped = 0

    async def predict(self, call: PredictCall, context: Context) -> Prediction:
        """Answer one call of one or many rows.

        Raises NotFoundError, InvalidArgumentError, PermissionDeniedError, UnavailableError,
        DeadlineExceededError, ResourceExhaustedError or InternalError; one call, one outcome.
        """
        caller = current_caller()
        if caller is None:
            return await self._predict(call, context)
        with caller.at_work(Scope.PREDICT, call.model):
            if call.event_time_us is not None:
                caller.check(Scope.REPLAY, call.model)
            return await self._predict(call, context)

    async def _predict(self, call: PredictCall, context: Context) -> Prediction:
        request_id = call.request_ids[0] if call.request_ids else ""
        looking = self._watch.request(PREDICT, call.model, call.version, request_id, context)
        with looking as seen:
            way = self._route(call, context)
            way.seen, way.trace_id = seen, trace_id_of(context)
            arms = _rows_of_arms(way)
            await self._read_features(way, call, arms)
            answers = await self._execute(way, call, arms)
            reply = self._reply(way, call, arms, answers)
        way.seen = None  # it is over; what follows is nobody's waiting time
        self._copy_to_shadows(way, call)
        return reply

    def _route(self, call: PredictCall, context: Context) -> _Way:
        started_ns = time.monotonic_ns()
        model = self._models.get(call.model)
        context.check_deadline(f"model '{call.model}'")
        rows = _row_count(call)
        take_rows(rows)
        event_time_us = self.event_time_us(call.event_time_us)
        take = self._clocks.ids.take
        ids = [take(event_time_us) for _ in range(rows)]
        keys = _request_keys(call, model, context, ids)
        flags, routing = 0, model.router.route(keys)
        if call.version:
            flags, routing = FORCED, model.force(call.version, rows)
        return _Way(
            model=model,
            rows=rows,
            event_time_us=event_time_us,
            deadline_ns=context.deadline_ns or started_ns + DEADLINE_NS,
            ids=ids,
            keys=keys,
            routing=routing,
            flags=flags,
            started_ns=started_ns,
        )

    async def _read_features(
        self, way: _Way, call: PredictCall, arms: dict[int, list[int]]
    ) -> None:
        """Read each distinct service once, for all rows: most calls have one service."""
        started_ns = time.monotonic_ns()
        times = np.full(way.rows, way.event_time_us, np.int64)
        for arm in arms:
            service = way.model.version(arm).service
            if service is not None and service.hash not in way.batches:
                way.batches[service.hash] = await self._features.read(
                    service, call.inputs, times, call.min_offset or None, way.deadline_ns
                )
                if way.seen is not None:
                    way.seen.read(service.name, started_ns, time.monotonic_ns())
        way.features_ns = time.monotonic_ns() - started_ns

    async def _execute(
        self, way: _Way, call: PredictCall, arms: dict[int, list[int]]
    ) -> dict[int, Shot]:
        """Run every arm's rows as one batch; arms run side by side."""
        if len(arms) == 1:
            ((arm, rows),) = arms.items()
            return {arm: await self._shoot(way, call, arm, rows, way.flags)}
        shots = await asyncio.gather(
            *(self._shoot(way, call, arm, rows, way.flags) for arm, rows in arms.items())
        )
        return dict(zip(arms, shots, strict=True))

    async def _shoot(
        self, way: _Way, call: PredictCall, arm: int, rows: list[int], flags: int
    ) -> Shot:
        """Run one arm for its rows. A failure is logged with its status, then raised."""
        version = way.model.version(arm)
        shot = Shot(way.model, arm, version, rows, flags)
        try:
            feeds = _feeds(way, call, version, rows)
            outputs = await version.model.infer(
                feeds, len(rows), Asked(deadline_ns=way.deadline_ns)
            )
            shot.take(outputs, feeds)
            if call.explain and not flags & SHADOW:
                await _explain(way, call, shot)
            if way.seen is not None and not flags & SHADOW:
                way.seen.ran(version.model.name, version.digest, outputs.timing)
        except HeadraceError as error:
            shot.status = error.status.grpc
            self._log(way, shot)
            raise
        return shot

    def _reply(
        self, way: _Way, call: PredictCall, arms: dict[int, list[int]], shots: dict[int, Shot]
    ) -> Prediction:
        width = max(shot.output.shape[1] for shot in shots.values())
        outputs = np.full((way.rows, width), np.nan, np.float32)
        versions, names = [""] * way.rows, [""] * way.rows
        decisions, features = [""] * way.rows, [b""] * way.rows
        explanations: dict[int, RowExplanation] = {}
        for arm, rows in arms.items():
            shot = shots[arm]
            outputs[rows, : shot.output.shape[1]] = shot.output
            packed = _packed(way, shot.version) if call.return_features else []
            if shot.explanation is not None:
                found = row_explanations(shot.version, shot.feeds, shot.explanation)
                explanations |= zip(rows, found, strict=True)
            for place, row in enumerate(rows):
                versions[row] = shot.version.digest
                names[row] = way.model.arms[arm].arm
                if shot.decisions:
                    decisions[row] = shot.decisions[place]
                if packed:
                    features[row] = packed[row]
        for shot in shots.values():
            self._log(way, shot)
        return Prediction(
            model=way.model.name,
            plan=way.model.number,
            prediction_ids=way.ids,
            versions=versions,
            arms=names,
            outputs=outputs,
            decisions=decisions if any(decisions) else [],
            features=features if call.return_features else [],
            explanations=[explanations[row] for row in range(way.rows)] if call.explain else [],
        )

    def _copy_to_shadows(self, way: _Way, call: PredictCall) -> None:
        """Run shadow arms after the answer: they cost the caller nothing and cannot fail it."""
        for arm in way.routing.shadows:
            if len(self._shadows) >= SHADOWS_MAX:
                self.shadows_skipped += 1
                continue
            task = asyncio.get_running_loop().create_task(self._shadow(way, call, arm))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)

    async def _shadow(self, way: _Way, call: PredictCall, arm: int) -> None:
        rows = list(range(way.rows))
        try:
            await self._read_features(way, call, {arm: rows})
            shot = await self._shoot(way, call, arm, rows, way.flags | SHADOW)
            self._log(way, shot)
        except HeadraceError as error:
            _LOG.warning("shadow arm of model %s: %s", way.model.name, error.message)
        except Exception as error:  # noqa: BLE001 - a task boundary: nobody waits for this one
            as_headrace_error(error, f"shadow arm of model '{way.model.name}'")

    def _log(self, way: _Way, shot: Shot) -> None:
        log_shot(
            self._tap,
            shot,
            batch=way.batches.get(shot.version.service.hash) if shot.version.service else None,
            ids=way.ids,
            keys=way.keys,
            routing=way.routing,
            event_time_us=way.event_time_us,
            logged_time_us=self._clocks.now_us(),
            features_ns=way.features_ns,
            total_ns=time.monotonic_ns() - way.started_ns,
            trace_id=way.trace_id,
            attributions=self._attributions,
        )

    def event_time_us(self, asked: int | None) -> int:
        """Return the event time of a call: now, or the one that a replay asks for."""
        if asked is None:
            return self._clocks.now_us()
        if not self._replay_scope:
            raise PermissionDeniedError(
                "setting event_time needs the replay scope",
                mend="leave it out: the server's clock is used",
            )
        if not 0 <= asked <= EVENT_TIME_US_MAX:
            raise InvalidArgumentError(
                "event_time is out of range",
                expected="microseconds since 1970 (UTC), before the year 10000",
                got=asked,
            )
        return asked

    async def close(self) -> None:
        """Let shadow copies that are under way end."""
        if self._shadows:
            await asyncio.wait(self._shadows, timeout=1.0)


def _row_count(call: PredictCall) -> int:
    where = f"inputs of model '{call.model}'"
    rows = max((len(column) for column in call.inputs.values()), default=0)
    if not 0 < rows <= ROWS_MAX:
        raise InvalidArgumentError("no rows" if rows == 0 else "too many rows", where=where,
                                   expected=f"1 to {ROWS_MAX}", got=rows)  # fmt: skip
    if call.request_ids and len(call.request_ids) != rows:
        raise InvalidArgumentError(
            "request_ids are not one a row", where=where, expected=rows, got=len(call.request_ids)
        )
    return rows


def _request_keys(
    call: PredictCall, model: ReleasedModel, context: Context, ids: list[bytes]
) -> list[bytes]:
    """Return what the policy sticks to: the column or header that it names, else the request id,
    else the prediction id."""
    name = model.router.key
    if name:
        column = call.inputs.get(name)
        if column is not None:
            return [
                str(value).encode() if valid else own
                for value, valid, own in zip(
                    column.values.tolist(), column.mask.tolist(), ids, strict=True
                )
            ]
        header = context.metadata.get(name.lower())
        if header is not None:
            return [header.encode()] * len(ids)
        raise InvalidArgumentError(
            f"the release plan routes by {name!r}, which is neither a column nor a header",
            where=f"inputs of model '{call.model}'",
        )
    if call.request_ids:
        return [text.encode() or own for text, own in zip(call.request_ids, ids, strict=True)]
    return ids


def _rows_of_arms(way: _Way) -> dict[int, list[int]]:
    """Return the rows of each arm that got any, in order."""
    arms: dict[int, list[int]] = {}
    for row, arm in enumerate(way.routing.arm_index.tolist()):
        arms.setdefault(arm, []).append(row)
    return arms


def _feeds(way: _Way, call: PredictCall, version: Version, rows: list[int]) -> list[Array]:
    """Return the session's inputs for these rows: the feature matrix, or columns by their name."""
    if version.service is not None:
        batch = way.batches[version.service.hash]
        if len(rows) != way.rows:
            batch = batch.take(rows)
        return [batch.matrix()]
    return feeds_of_columns(call.model, call.inputs, version.model, rows)


async def _explain(way: _Way, call: PredictCall, shot: Shot) -> None:
    """Explain what a shot answered; the first row's request id says what is drawn at random."""
    model, feeds, rows = shot.version.model, shot.feeds, shot.rows
    request_id = call.request_ids[rows[0]] if call.request_ids else ""
    shot.explanation = await model.explain(feeds, len(rows), way.deadline_ns, request_id)
    shot.flags |= EXPLAINED


def _packed(way: _Way, version: Version) -> list[bytes]:
    if version.service is None:
        return []
    return way.batches[version.service.hash].pack(version.schema_id)
