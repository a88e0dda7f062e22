"""Windows, and the functions of a column over them: what a stream view is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

from features.checks import check_name, duration_label, duration_us, unknown
from features.filters import Filter
from features.types import DType
from headrace.errors import InvalidArgumentError

FUNCTIONS = (
    "count",
    "sum",
    "mean",
    "min",
    "max",
    "variance",
    "stddev",
    "first",
    "last",
    "rate",
    "seconds_since_last",
    "decayed_count",
    "decayed_sum",
    "decayed_mean",
)
# What can be said of events that have no column.
EVENT_FUNCTIONS = ("count", "rate", "seconds_since_last", "decayed_count")
HALF_LIFE_US_MIN = 1000
# Bounds what one entity's state may grow to; 7 d of 1 min tiles are 10,080.
TILES_MAX = 20_000


class Window:
    """The window [⌊t − length⌋hop, t): its tail moves in steps of `hop`, its head is exact."""

    def __init__(self, length: str | timedelta, hop: str | timedelta) -> None:
        where = f"window {length}"
        self.length_us = duration_us(length, "length", where)
        self.hop_us = duration_us(hop, "hop", where)
        if self.hop_us == 0 or self.length_us == 0:
            raise InvalidArgumentError("length and hop must be longer than 0", where=where)
        if self.length_us % self.hop_us:
            raise InvalidArgumentError(
                "the length is not a multiple of the hop",
                where=where,
                expected="such as Window('7d', hop='1h')",
                got=f"length {length}, hop {hop}",
            )
        if self.length_us // self.hop_us > TILES_MAX:
            raise InvalidArgumentError(
                "the window has too many hops",
                where=where,
                expected=f"at most {TILES_MAX}",
                got=self.length_us // self.hop_us,
                mend="take a longer hop",
            )
        self.label = length if isinstance(length, str) else duration_label(self.length_us)

    def bounds_us(self, t_us: int) -> tuple[int, int]:
        """Return the most that the window holds at t_us: [start, end) in UTC microseconds."""
        return (t_us - self.length_us) // self.hop_us * self.hop_us, t_us

    def meaning(self) -> list[object]:
        """What a view's hash covers."""
        return [self.length_us, self.hop_us]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.label!r}, hop={duration_label(self.hop_us)!r})"


class TumblingWindow(Window):
    """The window [⌊t⌋length, t): from when its period began, such as midnight UTC for `1d`.

    previous: the whole period before that one, [⌊t⌋length − length, ⌊t⌋length).
    """

    def __init__(self, length: str | timedelta, *, previous: bool = False) -> None:
        period = Window(length, length)
        self.hop_us = period.hop_us
        self.previous = previous
        # As of a sliding window: how far before t it reaches, then rounded down to its hop.
        self.length_us = period.hop_us if previous else 0
        self.label = f"{'previous' if previous else 'tumbling'}_{period.label}"

    def bounds_us(self, t_us: int) -> tuple[int, int]:
        """See `Window`."""
        start_us, _ = super().bounds_us(t_us)
        return start_us, start_us + self.hop_us if self.previous else t_us

    def meaning(self) -> list[object]:
        """See `Window`."""
        return [*super().meaning(), "previous" if self.previous else "tumbling"]


class LifetimeWindow(Window):
    """All events before t: nothing of an entity is ever forgotten."""

    label = "lifetime"
    # Every time that there is lies in one of the two hops that meet in 1970.
    length_us = 1 << 61
    hop_us = 1 << 62

    def __init__(self) -> None:
        pass


class SessionWindow(Window):
    """The events before t up to the first pause longer than `gap`; none after such a pause.

    Neighbours are at most `gap` apart, and so are the last of them and t. Of a session longer than
    max_length only what `Window(max_length, hop=gap)` holds counts.
    """

    def __init__(self, gap: str | timedelta, *, max_length: str | timedelta) -> None:
        longest = Window(max_length, gap)
        self.length_us, self.hop_us = longest.length_us, longest.hop_us
        self.label = f"session_{Window(gap, gap).label}"

    def meaning(self) -> list[object]:
        """See `Window`."""
        return [*super().meaning(), "session"]


@dataclass(frozen=True, eq=False)
class Aggregation:
    """Functions of one column over windows. Column None counts events, whatever they hold.

    Nulls are skipped: `count` of a column counts what is not null. `sum`, `min`, `max`, `first` and
    `last` keep the column's type (Bool and Int64 give Int64, floats give Float64); the others are
    Float64: `mean`, `variance` and `stddev` (of a sample), `rate` (counted per second of the
    window), `seconds_since_last`, and `decayed_…`, where an event counts half as much after each
    `half_life` (their names hold it). A NaN in a window makes all of these NaN but first and last.
    where: only the events of which this is true are taken, such as `Where("kind", "==", "refund")`;
    `label` then ends the features' names.
    """

    column: str | None
    functions: Sequence[str]
    windows: Sequence[Window]
    where: Filter | None = None
    label: str | None = None
    half_life: str | timedelta | None = None

    def __post_init__(self) -> None:
        where = f"aggregation of {self.column!r}" if self.column else "aggregation of events"
        if isinstance(self.functions, str) or not self.functions:
            raise InvalidArgumentError(
                "functions must be a list of at least one name", where=where, got=self.functions
            )
        for function in self.functions:
            if function not in FUNCTIONS:
                raise unknown("function", function, FUNCTIONS, where)
            if self.column is None and function not in EVENT_FUNCTIONS:
                raise InvalidArgumentError(
                    f"{function!r} needs a column",
                    where=where,
                    expected=f"of events without one: {', '.join(EVENT_FUNCTIONS)}",
                )
        if not self.windows or any(not isinstance(window, Window) for window in self.windows):
            raise InvalidArgumentError(
                "windows must be a list of at least one Window(length, hop)", where=where
            )
        if "rate" in self.functions and any(
            isinstance(window, LifetimeWindow | SessionWindow) for window in self.windows
        ):
            raise InvalidArgumentError("'rate' needs a window that has a length", where=where)
        self._check_filter(where)
        self.half_life_us  # noqa: B018 - a mistake in it is named now

    def _check_filter(self, where: str) -> None:
        if self.where is not None and not isinstance(self.where, Filter):
            raise InvalidArgumentError(
                "where must be a filter",
                where=where,
                expected="such as Where('kind', '==', 'refund')",
                got=repr(self.where),
            )
        if (self.where is None) != (self.label is None):
            raise InvalidArgumentError(
                "a filter and its label go together",
                where=where,
                expected="such as where=Where('kind', '==', 'refund'), label='refunds'",
                got="a filter alone" if self.label is None else "a label alone",
            )
        if self.label is not None:
            check_name(self.label, "a filter's label")

    @cached_property
    def half_life_us(self) -> int:
        """The half-life of what decays; 0 where nothing does."""
        where = f"aggregation of {self.column!r}"
        decays = any(function.startswith("decayed") for function in self.functions)
        if decays != (self.half_life is not None):
            raise InvalidArgumentError(
                "a half-life and decayed functions go together",
                where=where,
                expected="such as ['decayed_sum'] and half_life='1d'",
                got="no half_life" if decays else f"half_life {self.half_life}",
            )
        if self.half_life is None:
            return 0
        half_life_us = duration_us(self.half_life, "half_life", where)
        if half_life_us < HALF_LIFE_US_MIN:
            raise InvalidArgumentError(
                "the half-life is too short", where=where, expected="1ms or more"
            )
        return half_life_us

    def feature_name(self, function: str, window: Window) -> str:
        """Return `{column}_{function}_{window}_{label}`, without the parts there are not."""
        decay = duration_label(self.half_life_us) if function.startswith("decayed") else None
        parts = (self.column, function, decay, window.label, self.label)
        return "_".join(part for part in parts if part is not None)


@dataclass(frozen=True)
class WindowFeature:
    """One output of a stream view."""

    name: str
    dtype: DType
    column: str | None
    function: str
    window: Window
    where: Filter | None
    half_life_us: int  # 0: it does not decay
