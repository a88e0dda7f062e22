"""The tracer of a worker: whose requests are traced, by rules that may change."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from server.tracing.context import TraceContext, may_be_sampled, parse
from server.tracing.rules import Rule, Sampler
from server.tracing.spans import SPAN_BYTES, TRACE_BYTES, Ids, Traced

NewId = Callable[[int], bytes]


class Head(Protocol):
    """The head of a request on either wire, as far as it says of a trace; empty: nothing."""

    @property
    def traceparent(self) -> bytes:
        """The value as it came."""

    @property
    def tracestate(self) -> str:
        """The value as it came."""


class Tracer:
    """Decides who is traced, and hands what is over to `put`. `on`: whether anybody may be."""

    def __init__(
        self,
        put: Callable[[Traced], None],
        draw: Callable[[], float],
        new_id: NewId = secrets.token_bytes,
    ) -> None:
        self.put = put
        self.on = False
        self._draw = draw
        self._new_id = new_id
        self._samplers: dict[str, Sampler | None] = {}
        self._other: Sampler | None = None  # of models without a rule; None: not traced

    def follow(self, rule: Rule, models: Mapping[str, Rule]) -> None:
        """Decide by these rules from now on."""
        self._other = self._sampler(rule)
        self._samplers = {name: self._sampler(own) for name, own in models.items()}
        self.on = rule.on or any(own.on for own in models.values())

    def left(self, model: str) -> int | None:
        """Return how many traces may begin yet by the rule of a model; None where it is off."""
        sampler = self._samplers.get(model, self._other)
        return None if sampler is None else sampler.left

    def pick(self, model: str, heads: Sequence[Head]) -> list[int]:
        """Return which of a tick's requests of one model are traced."""
        sampler = self._samplers.get(model, self._other)
        if sampler is None:
            return []
        kinds = set(heads)  # who sends no traceparent sends one head again and again
        if len(kinds) == 1 and not kinds.pop().traceparent:
            return sampler.picks(len(heads))
        taken: list[int] = []
        free: list[int] = []
        for place, head in enumerate(heads):
            value = head.traceparent
            if value and not may_be_sampled(value):
                continue
            parent = parse(value)
            if parent is None:
                free.append(place)
            elif parent.sampled:
                taken.append(place)
        return taken + [free[place] for place in sampler.picks(len(free))]

    def begin(self, model: str, parent: TraceContext | None) -> Ids | None:
        """Decide about one request that came alone: its span's place, or None."""
        sampler = self._samplers.get(model, self._other)
        if sampler is None:
            return None
        traced = parent.sampled if parent is not None else bool(sampler.picks(1))
        return self.ids(parent) if traced else None

    def ids(self, parent: TraceContext | None) -> Ids:
        """Return the place of a new span under this one; without, it begins a trace."""
        span_id = self._new_id(SPAN_BYTES)
        if parent is None:
            return Ids(self._new_id(TRACE_BYTES), span_id)
        return Ids(parent.trace_id, span_id, parent.span_id, parent.state)

    def _sampler(self, rule: Rule) -> Sampler | None:
        return Sampler(rule.rate, rule.count, self._draw) if rule.on else None
