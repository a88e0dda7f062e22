"""What a team defines once, for training and serving alike: views and services.

Every mistake raises InvalidArgumentError where it is made, naming the thing and the mend.
The `meaning()` of an object is what its hash covers: names, types and semantics, but not
descriptions, owners and tags, so that a better sentence makes no new version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from itertools import pairwise

from features.aggregations import (
    EVENT_FUNCTIONS,
    Aggregation,
    LifetimeWindow,
    Window,
    WindowFeature,
)
from features.checks import check_name, check_unique, duration_label, duration_us, unknown
from features.filters import Filter
from features.sources import Entity, EventSource, Source, TableSource
from features.types import DType
from headrace.digest import digest_json
from headrace.errors import InvalidArgumentError

# A stamp further than this ahead of its created time is a broken clock: such an event is
# quarantined and counted, in history and stream alike, or it would evict what is still needed.
FUTURE_TOLERANCE_US = 5 * 60 * 1_000_000
# Validity of the columns of an event, and what its filters say, are a bitmap of 48 bits.
COLUMNS_MAX = 48


class _Selectable:
    """Gives `view["a", "b"]`."""

    name: str
    feature_dtypes: dict[str, DType]

    def __getitem__(self, names: str | tuple[str, ...]) -> Selection:
        return Selection(self, (names,) if isinstance(names, str) else names)


class Selection:
    """Some features of a view, in the order asked for."""

    def __init__(self, view: _Selectable, names: tuple[str, ...]) -> None:
        self.view = view
        self.names = names
        for name in names:
            if name not in view.feature_dtypes:
                raise unknown("feature", name, view.feature_dtypes, f"view {view.name!r}")
        check_unique(names, "feature", f"selection of view {view.name!r}")


@dataclass(frozen=True, eq=False)
class _View(_Selectable):
    name: str
    entity: Entity
    source: Source

    @property
    def where(self) -> str:
        return f"view {self.name!r}"

    def _check_keys(self) -> None:
        check_name(self.name, "a view")
        if not isinstance(self.entity, Entity):
            raise InvalidArgumentError("entity must be an Entity", where=self.where)
        if not isinstance(self.source, EventSource | TableSource):
            raise InvalidArgumentError(
                "source must be an EventSource or a TableSource", where=self.where
            )
        for key in self.entity.join_keys:
            dtype = self.source.dtype(key, f"{self.where}, entity {self.entity.name!r}")
            self.entity.check_key(key, dtype, self.where)


@dataclass(frozen=True, eq=False)
class StreamFeatureView(_View):
    """Windowed aggregates of an entity's events; features `{column}_{function}_{window}_{label}`.

    allowed_lateness: an event that became known (created time) later than so much after its event
    time is left out, in history and stream alike; None: every event counts. includes_now: whether
    an event at the very time of the query counts, such as the one that asks.
    """

    aggregations: Sequence[Aggregation] = ()
    allowed_lateness: str | timedelta | None = None
    includes_now: bool = False
    owner: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    description: str = ""

    def __post_init__(self) -> None:
        self._check_keys()
        if not self.aggregations or any(
            not isinstance(aggregation, Aggregation) for aggregation in self.aggregations
        ):
            raise InvalidArgumentError(
                "aggregations must be a list of at least one Aggregation", where=self.where
            )
        check_unique((feature.name for feature in self.features), "feature", self.where)
        for aggregation in self.aggregations:
            if aggregation.where is not None:
                aggregation.where.check(self.source, self.where)
        if len(self.columns) + len(self.filtered) > COLUMNS_MAX:
            raise InvalidArgumentError(
                "a view aggregates too many columns",
                where=self.where,
                expected=f"at most {COLUMNS_MAX}, each counted once more for every filter on it",
                got=len(self.columns) + len(self.filtered),
            )
        self.allowed_lateness_us  # noqa: B018 - a mistake in it is named now
        hops = sorted({f.window.hop_us for f in self.features if type(f.window) is Window})
        for small, large in pairwise(hops):
            if large % small:
                raise InvalidArgumentError(
                    "the hops of a view's sliding windows must divide one another",
                    where=self.where,
                    got=f"{duration_label(small)} and {duration_label(large)}",
                )

    @cached_property
    def features(self) -> list[WindowFeature]:
        """The outputs in the order of their declaration."""
        return [
            WindowFeature(
                aggregation.feature_name(function, window),
                self._output_dtype(aggregation.column, function),
                aggregation.column,
                function,
                window,
                aggregation.where,
                aggregation.half_life_us if function.startswith("decayed") else 0,
            )
            for aggregation in self.aggregations
            for function in aggregation.functions
            for window in aggregation.windows
        ]

    def _output_dtype(self, column: str | None, function: str) -> DType:
        dtype = DType.INT64 if column is None else self.source.dtype(column, self.where)
        if function in EVENT_FUNCTIONS:
            return DType.INT64 if function == "count" else DType.FLOAT64
        if not dtype.is_feature:
            raise InvalidArgumentError(
                f"{function!r} of column {column!r} has no meaning",
                where=self.where,
                expected="a number or a Bool (any column can be counted)",
                got=dtype.value,
            )
        keeps = function in {"sum", "min", "max", "first", "last"} and not dtype.is_float
        return DType.INT64 if keeps else DType.FLOAT64

    @cached_property
    def columns(self) -> list[str]:
        """The source columns that are aggregated, each once, in the order of first use."""
        return list(dict.fromkeys(a.column for a in self.aggregations if a.column is not None))

    @cached_property
    def filtered(self) -> list[tuple[str | None, Filter]]:
        """The columns (None: the events) that are aggregated by a filter, with it, each once."""
        return list(
            dict.fromkeys((a.column, a.where) for a in self.aggregations if a.where is not None)
        )

    @cached_property
    def fields(self) -> list[str]:
        """The source columns that are read: those that are aggregated, and those of filters."""
        filters = [name for _, where in self.filtered for name in where.fields]
        return list(dict.fromkeys(self.columns + filters))

    @cached_property
    def hops_us(self) -> list[int]:
        """The distinct hops, ascending."""
        return sorted({feature.window.hop_us for feature in self.features})

    @cached_property
    def feature_dtypes(self) -> dict[str, DType]:  # type: ignore[override]
        """The type of every feature, in their order."""
        return {feature.name: feature.dtype for feature in self.features}

    @cached_property
    def forgets(self) -> bool:
        """Whether a row may go when no event has come for as long as its windows reach."""
        return not any(isinstance(f.window, LifetimeWindow) for f in self.features)

    @cached_property
    def reach_us(self) -> int:
        """How far before its time a query may see: the longest window and its hop."""
        return max(f.window.length_us + f.window.hop_us for f in self.features)

    @cached_property
    def allowed_lateness_us(self) -> int:
        """The allowed lateness; at most what a window at the created time still reaches."""
        if self.allowed_lateness is None:
            return self.reach_us
        lateness_us = duration_us(self.allowed_lateness, "allowed_lateness", self.where)
        return min(self.reach_us, lateness_us)

    @cached_property
    def hash(self) -> str:
        """`sha256:…` of what this view means."""
        return digest_json(self.meaning())

    def meaning(self) -> dict[str, object]:
        """What the hash covers."""
        options: dict[str, object] = {}
        if self.allowed_lateness is not None:
            options["allowed_lateness_us"] = self.allowed_lateness_us
        if self.includes_now:
            options["includes_now"] = True
        return {
            "kind": "stream",
            "name": self.name,
            "entity": self.entity.meaning(),
            "source": self.source.meaning(),
            "features": [
                [
                    *(f.name, f.column, f.function, *f.window.meaning()),
                    *(() if f.where is None else [f.where.meaning()]),
                    *([f.half_life_us] if f.half_life_us else ()),
                ]
                for f in self.features
            ],
            **options,
        }


@dataclass(frozen=True, eq=False)
class FeatureView(_View):
    """The last known values of an entity: null after `ttl` has passed since their event time."""

    fields: Sequence[str] = ()
    ttl: str | timedelta | None = None
    owner: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    description: str = ""

    def __post_init__(self) -> None:
        self._check_keys()
        if isinstance(self.fields, str) or not self.fields:
            raise InvalidArgumentError(
                "fields must be a list of at least one name", where=self.where, got=self.fields
            )
        check_unique(self.fields, "field", self.where)
        self.feature_dtypes  # noqa: B018 - names an unknown column now, not at the first request
        self.ttl_us  # noqa: B018 - the same for the duration

    @cached_property
    def feature_dtypes(self) -> dict[str, DType]:  # type: ignore[override]
        """The type of every field, in their order."""
        return {name: self.source.dtype(name, self.where) for name in self.fields}

    @cached_property
    def ttl_us(self) -> int | None:
        """A value is expired when t − event_time > ttl_us; None: never."""
        return None if self.ttl is None else duration_us(self.ttl, "ttl", self.where)

    @cached_property
    def hash(self) -> str:
        """`sha256:…` of what this view means."""
        return digest_json(self.meaning())

    def meaning(self) -> dict[str, object]:
        """What the hash covers."""
        return {
            "kind": "last_known",
            "name": self.name,
            "entity": self.entity.meaning(),
            "source": self.source.meaning(),
            "fields": list(self.fields),
            "ttl_us": self.ttl_us,
        }


StoredView = FeatureView | StreamFeatureView
