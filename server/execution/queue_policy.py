"""`dynamic_batching` of a model's configuration: what waits in its queue, how long, in what order.

Without it a model runs whatever came in a tick, in the order in which it came. Nothing here reads
the clock: times are monotonic nanoseconds that are passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.errors import UnavailableError
from server.execution.lots import Lot

_NS_PER_US = 1_000


@dataclass(frozen=True, slots=True)
class LevelPolicy:
    """The queue of one priority level. 0 means: no bound. `delays`: a request that waited longer
    than `timeout_ns` goes behind all others instead of being refused. `overrides`: a request may
    ask for less."""

    requests_max: int = 0
    timeout_ns: int = 0
    delays: bool = False
    overrides: bool = False

    def waits_ns(self, own_ns: int) -> int:
        """Return how long a request may wait that asks for `own_ns`; 0 each time: for ever."""
        if not self.overrides or not own_ns:
            return self.timeout_ns
        return min(own_ns, self.timeout_ns or own_ns)


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How a queue becomes batches.

    A batch runs when it is as large as the largest or a preferred size, or when its oldest request
    has waited `delay_ns`. With `levels`, those of a lower number run first; a request without a
    level, or of one that there is not, is of `default_level`.
    """

    delay_ns: int = 0
    preferred: tuple[int, ...] = ()
    levels: int = 0
    default_level: int = 0
    default: LevelPolicy = LevelPolicy()
    of_levels: dict[int, LevelPolicy] = field(default_factory=dict)

    def level(self, priority: int) -> int:
        """Return the level of a request with this priority."""
        return priority if 0 < priority <= self.levels else self.default_level

    def of(self, priority: int) -> LevelPolicy:
        """Return the queue's policy for a request with this priority."""
        return self.of_levels.get(self.level(priority), self.default)

    def arrange(self, lots: Sequence[Lot], now_ns: int) -> list[Lot]:
        """Return the lots in the order in which they run; what waited too long is refused."""
        due: list[Lot] = []
        delayed: list[Lot] = []
        for lot in lots:
            policy = self.of(lot.priority)
            waits_ns = policy.waits_ns(lot.timeout_ns)
            if not waits_ns or now_ns - lot.arrived_ns <= waits_ns:
                due.append(lot)
            elif policy.delays:
                delayed.append(lot)
            else:
                lot.fail(UnavailableError("Request timeout expired"))
        if self.levels:
            due.sort(key=lambda lot: self.level(lot.priority))
            delayed.sort(key=lambda lot: self.level(lot.priority))
        return due + delayed

    def size(self, rows: int, rows_max: int) -> int | None:
        """Return the size of the batch that `rows` rows make at once; None: they may wait."""
        if rows >= rows_max:
            return rows_max
        return max((size for size in self.preferred if size <= rows), default=None)


def policy_of(config: Any) -> QueuePolicy | None:
    """Return what a ModelConfig asks for; None where that is what is done anyway."""
    if config.HasField("sequence_batching"):
        oldest = config.sequence_batching.oldest  # of another strategy it is empty
        delay_ns = oldest.max_queue_delay_microseconds * _NS_PER_US
        return QueuePolicy(delay_ns, _sizes(oldest.preferred_batch_size)) if delay_ns else None
    if not config.HasField("dynamic_batching"):
        return None
    asked = config.dynamic_batching
    policy = QueuePolicy(
        asked.max_queue_delay_microseconds * _NS_PER_US,
        _sizes(asked.preferred_batch_size),
        asked.priority_levels,
        asked.default_priority_level,
        _level_policy(asked.default_queue_policy),
        {level: _level_policy(own) for level, own in asked.priority_queue_policy.items()},
    )
    return None if policy == QueuePolicy() else policy


def _sizes(preferred: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(size for size in preferred if size > 0))


def _level_policy(asked: Any) -> LevelPolicy:
    return LevelPolicy(
        asked.max_queue_size,
        asked.default_timeout_microseconds * _NS_PER_US,
        asked.timeout_action == asked.DELAY,
        asked.allow_timeout_override,
    )
