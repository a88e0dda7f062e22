"""Tensors in, tensors out, for models under a release plan: the Open Inference Protocol's side.

The split applies by the request's id, the answer carries the ids of its predictions, and the rows
are logged as those of Predict are.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

import numpy as np

from headrace.errors import STATUS, HeadraceError, NotFoundError
from headrace.ids import id_text
from monitor.schema import EXPLAINED, FORCED
from router import Routing
from server.access.callers import take_rows
from server.attribution_log import AttributionLog
from server.execution.engine import Asked
from server.log_rows import Shot, log_shot
from server.models.bundles import ReleasedModels
from server.models.loaded import LoadedModel
from server.predict import DEADLINE_NS, Clocks
from server.protocol.oip import (
    EXPLAIN,
    InferAnswer,
    InferCall,
    add_explanation,
    choose_outputs,
)
from server.tap import Tap
from server.watch import trace_id_of, who
from server.wire.handlers import Context

_CANCELLED = 1  # gRPC's; not among ours, as no error of ours says it


class ReleasedTensors:
    """Implements `server.protocol.oip.Released`."""

    def __init__(
        self,
        models: ReleasedModels,
        tap: Tap,
        clocks: Clocks,
        attributions: AttributionLog | None = None,
    ) -> None:
        self._models = models
        self._tap = tap
        self._clocks = clocks
        self._attributions = attributions

    def names(self) -> list[str]:
        """Return the models under the release plan."""
        return self._models.names()

    def loaded(self, name: str, version: str) -> LoadedModel | None:
        """Return what answers for tensors: the live arm's model, or the version of this digest."""
        released = self._models.find(name)
        if released is None:
            return None
        if not version:
            return released.live.model
        found = released.versions.get(version)
        if found is None:
            raise NotFoundError(
                f"Request for unknown model: '{name}' version {version} is not found"
            )
        return found.model

    async def infer(self, call: InferCall, context: Context) -> InferAnswer:
        """Route, run and log one request: its id is the key, all its rows stay together.

        The answer carries the ids of its rows, joined by commas, in the parameter `prediction_id`.
        """
        started_ns = time.monotonic_ns()
        model = self._models.get(call.model)
        event_time_us = self._clocks.now_us()
        take = self._clocks.ids.take
        ids = [take(event_time_us)]
        key = call.request_id.encode() or ids[0]
        routing = model.force(call.version, 1) if call.version else model.router.route([key])
        arm = int(routing.arm_index[0])
        version = model.version(arm)
        feeds, rows = version.model.check(call.tensors, call.wanted)
        take_rows(rows)
        ids += [take(event_time_us) for _ in range(rows - 1)]
        shot = Shot(model, arm, version, list(range(rows)), FORCED if call.version else 0)
        deadline_ns = context.deadline_ns or started_ns + DEADLINE_NS
        try:
            asked = Asked(deadline_ns=deadline_ns, who=partial(who, call.request_id, context))
            outputs = await version.model.infer(feeds, rows, asked)
            shot.take(outputs, feeds)
            if call.parameters.get(EXPLAIN):
                shot.explanation = await version.model.explain(
                    feeds, rows, deadline_ns, call.request_id
                )
                shot.flags |= EXPLAINED
        except HeadraceError as error:
            shot.status = error.status.grpc
            raise
        except asyncio.CancelledError:  # by the caller, or by gRPC at the caller's deadline
            late = time.monotonic_ns() >= deadline_ns
            shot.status = STATUS["deadline_exceeded"].grpc if late else _CANCELLED
            raise
        finally:
            log_shot(
                self._tap,
                shot,
                batch=None,
                ids=ids,
                keys=[key] * rows,
                routing=_repeated(routing, rows),
                event_time_us=event_time_us,
                logged_time_us=self._clocks.now_us(),
                features_ns=0,
                total_ns=time.monotonic_ns() - started_ns,
                trace_id=trace_id_of(context),
                attributions=self._attributions,
            )
        answer = InferAnswer(
            call.model,
            version.digest,
            call.request_id,
            choose_outputs(version.model, outputs.arrays, call.wanted),
            {"prediction_id": ",".join(map(id_text, ids))},
            outputs.timing,
        )
        if shot.explanation is not None:
            add_explanation(answer, shot.explanation)
        return answer


def _repeated(routing: Routing, rows: int) -> Routing:
    return Routing(
        np.repeat(routing.arm_index, rows), np.repeat(routing.propensity, rows), routing.pmf, ()
    )
