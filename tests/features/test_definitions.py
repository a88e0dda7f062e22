"""Definitions: every mistake is named where it is made; meaning decides the hash."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from features import (
    Aggregation,
    Array,
    Bool,
    Bytes,
    Entity,
    EventSource,
    FeatureService,
    FeatureView,
    Field,
    Float64,
    Int64,
    LifetimeWindow,
    OnDemandFeatureView,
    RequestSource,
    SessionWindow,
    StreamFeatureView,
    String,
    TableSource,
    Timestamp,
    TumblingWindow,
    Uuid,
    Where,
    Window,
)
from features.definitions import COLUMNS_MAX
from headrace.errors import InvalidArgumentError

PLANE = Entity("plane", ["tailnum"])
FIELDS = [
    Field("tailnum", String),
    Field("dep_delay", Int64),
    Field("speed", Float64),
    Field("diverted", Bool),
    Field("at", Timestamp),
]
DEPARTURES = EventSource("departures", FIELDS)
HOUR = Window("1h", hop="1min")
WEEK = Window("7d", hop="1h")
FLIGHT = RequestSource("flight", [Field("scheduled", Timestamp)])


def stream(*aggregations: Aggregation, **given: object) -> StreamFeatureView:
    default = (Aggregation("dep_delay", ["count"], [HOUR]),)
    given = {"name": "v", "entity": PLANE, "source": DEPARTURES} | given
    return StreamFeatureView(**given, aggregations=list(aggregations or default))  # type: ignore[arg-type]


def view(**given: object) -> FeatureView:
    given = {"name": "f", "entity": PLANE, "source": DEPARTURES, "fields": ["speed"]} | given
    return FeatureView(**given)  # type: ignore[arg-type]


def on_demand(**given: object) -> OnDemandFeatureView:
    given = {"name": "o", "inputs": [FLIGHT], "fields": [Field("hour", Int64)]} | given
    return OnDemandFeatureView(**{"function": dict, **given})  # type: ignore[arg-type]


def test_features_are_named_and_typed_in_the_order_of_their_declaration() -> None:
    features = stream(
        Aggregation("dep_delay", ["count", "mean", "max"], [HOUR, WEEK]),
        Aggregation("speed", ["sum", "min"], [HOUR]),
        Aggregation("diverted", ["sum", "max"], [HOUR]),
        Aggregation("tailnum", ["count"], [HOUR]),
        Aggregation(None, ["count"], [Window(timedelta(hours=6), timedelta(minutes=5))]),
    ).feature_dtypes
    assert {name: dtype.value for name, dtype in features.items()} == {
        "dep_delay_count_1h": "int64",
        "dep_delay_count_7d": "int64",
        "dep_delay_mean_1h": "float64",
        "dep_delay_mean_7d": "float64",
        "dep_delay_max_1h": "int64",
        "dep_delay_max_7d": "int64",
        "speed_sum_1h": "float64",
        "speed_min_1h": "float64",
        "diverted_sum_1h": "int64",
        "diverted_max_1h": "int64",
        "tailnum_count_1h": "int64",
        "count_6h": "int64",
    }


MISTAKES: list[tuple[Callable[[], object], str]] = [
    (lambda: Entity("my plane", ["tailnum"]), "name of an entity is not usable.*'my plane'"),
    (lambda: Entity("", ["tailnum"]), "name of an entity is not usable"),
    (lambda: Entity(3, ["tailnum"]), "name of an entity is not usable"),
    (lambda: Entity("plane", "tailnum"), "join_keys must be a list.*got tailnum"),
    (lambda: Entity("plane", []), "join_keys must be a list"),
    (lambda: Entity("plane", ["a", "a"]), "entity 'plane': join key 'a' is there twice"),
    (lambda: EventSource("s", []), "source 's': fields must be a list"),
    (lambda: EventSource("s", ["tailnum"]), "source 's': fields must be a list"),
    (lambda: EventSource("s", [Field("a", Int64), Field("a", Int64)]), "field 'a' is there twice"),
    (lambda: EventSource("s", [Field("a", int)]), "field 'a' has no known type.*Int64"),
    (lambda: TableSource("s", [Field("event_time", Int64)]), "'event_time' has a reserved name"),
    (lambda: RequestSource("r", [Field("a:b", Int64)]), "name of a field is not usable"),
    (lambda: Window("1 hour", hop="1min"), "window 1 hour: length is not a duration.*'5min'"),
    (lambda: Window("1h", hop=60), "hop is not a duration.*got 60"),
    (lambda: Window("7min", hop="2min"), "not a multiple of the hop.*length 7min, hop 2min"),
    (lambda: Window("1h", hop="0s"), "must be longer than 0"),
    (lambda: Window(timedelta(hours=-1), "1min"), "length is negative"),
    (lambda: Window("30d", hop="1s"), "too many hops.*longer hop"),
    (lambda: Aggregation("a", "count", [HOUR]), "functions must be a list"),
    (lambda: Aggregation("a", [], [HOUR]), "functions must be a list"),
    (lambda: Aggregation("a", ["avg"], [HOUR]), "unknown function 'avg'.*mean"),
    (lambda: Aggregation("a", ["means"], [HOUR]), "unknown function 'means'; did you mean 'mean'"),
    (lambda: Aggregation(None, ["sum"], [HOUR]), "'sum' needs a column"),
    (lambda: Aggregation("a", ["sum"], []), "windows must be a list"),
    (lambda: Aggregation("a", ["sum"], ["1h"]), "windows must be a list"),
    (lambda: stream(name="a:b"), "name of a view is not usable"),
    (lambda: stream(entity="plane"), "view 'v': entity must be an Entity"),
    (lambda: stream(source=FLIGHT), "view 'v': source must be an EventSource or a TableSource"),
    (lambda: stream(entity=Entity("p", ["tailnumber"])), "unknown column.*did you mean 'tailnum'"),
    (lambda: stream(entity=Entity("p", ["speed"])), "join key 'speed' cannot be a key.*float64"),
    (lambda: stream("x"), "aggregations must be a list"),  # type: ignore[arg-type]
    (lambda: stream(Aggregation("delay", ["sum"], [HOUR])), "'delay'; did you mean 'dep_delay'"),
    (lambda: stream(Aggregation("tailnum", ["max"], [HOUR])), "'max' of column 'tailnum' has no"),
    (lambda: stream(Aggregation("at", ["sum"], [HOUR])), "'sum' of column 'at' has no meaning"),
    (lambda: stream(Aggregation("speed", ["sum", "sum"], [HOUR])), "'speed_sum_1h' is there twice"),
    (
        lambda: stream(Aggregation("speed", ["sum"], [HOUR, Window("1h", hop="5min")])),
        "feature 'speed_sum_1h' is there twice",
    ),
    (
        lambda: stream(
            Aggregation("speed", ["sum"], [Window("4min", hop="2min"), Window("9min", hop="3min")])
        ),
        "view 'v': the hops of a view.s sliding windows must divide.*2min and 3min",
    ),
    (lambda: view(fields="speed"), "fields must be a list"),
    (lambda: view(fields=[]), "fields must be a list"),
    (lambda: view(fields=["sped"]), "view 'f': unknown column.*did you mean 'speed'"),
    (lambda: view(fields=["speed", "speed"]), "field 'speed' is there twice"),
    (lambda: view(ttl=timedelta(seconds=-1)), "view 'f': ttl is negative"),
    (lambda: view(ttl="soon"), "view 'f': ttl is not a duration.*'soon'"),
    (lambda: view()["sped"], "view 'f': unknown feature 'sped'; did you mean 'speed'"),
    (lambda: view()["speed", "speed"], "feature 'speed' is there twice"),
    (lambda: on_demand(inputs=[]), "on-demand view 'o': inputs must name at least one view"),
    (lambda: on_demand(inputs=[PLANE]), "an input is of no known kind.*got Entity"),
    (lambda: on_demand(inputs=[FLIGHT, FLIGHT]), "input 'scheduled' is there twice"),
    (lambda: on_demand(fields=[]), "fields must be a list"),
    (lambda: FeatureService("s", 0, [view()]), "service 's': version must be a whole number"),
    (lambda: FeatureService("s", True, [view()]), "version must be a whole number"),
    (lambda: FeatureService("s", 1, []), "features must hold at least one view"),
    (lambda: FeatureService("s", 1, [FLIGHT]), "something that is no view.*got RequestSource"),
    (lambda: FeatureService("s", 1, [view(), view()["speed"]]), "'f:speed' is there twice"),
    (
        lambda: FeatureService("s", 1, [view(), view(fields=["dep_delay"])]),
        "two views are called 'f'",
    ),
    (
        lambda: view(entity=Entity("plane", ["tailnum"], key_types={"tailnum": Bytes})),
        "join key 'tailnum' cannot be a key.*expected Bytes, got string",
    ),
    (
        lambda: view(source=TableSource("t", [Field("tailnum", Uuid), Field("speed", Int64)])),
        r"expected Int64 or String, got uuid.*key_types=\{'tailnum': Uuid\}",
    ),
    (
        lambda: Entity("plane", ["tailnum"], key_types={"tail": Uuid}),
        "unknown join key 'tail'.*did you mean 'tailnum'",
    ),
    (
        lambda: Entity("plane", ["tailnum"], key_types={"tailnum": Float64}),
        "'tailnum' names a type that is none of a key.*Uuid or Bytes.*float64",
    ),
    (lambda: Array(Bool), "arrays cannot hold this type.*bool"),
]


@pytest.mark.parametrize(("make", "message"), MISTAKES)
def test_a_mistake_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        make()


def test_a_view_aggregates_a_bounded_number_of_columns() -> None:
    names = [f"c{i}" for i in range(COLUMNS_MAX + 1)]
    source = EventSource("wide", [Field("tailnum", String), *(Field(n, Int64) for n in names)])
    stream(*(Aggregation(n, ["sum"], [HOUR]) for n in names[1:]), source=source)
    with pytest.raises(InvalidArgumentError, match="too many columns"):
        stream(*(Aggregation(n, ["sum"], [HOUR]) for n in names), source=source)


def test_a_description_changes_no_hash_and_a_meaning_does() -> None:
    plain = stream().hash
    assert stream(description="what it is", owner="us", tags={"a": "b"}).hash == plain
    assert stream(name="w").hash != plain
    assert stream(Aggregation("dep_delay", ["sum"], [HOUR])).hash != plain
    assert stream(Aggregation("dep_delay", ["count"], [Window("1h", "5min")])).hash != plain
    assert stream(entity=Entity("other", ["tailnum"])).hash != plain
    assert stream(allowed_lateness="5min").hash != stream(allowed_lateness="6min").hash != plain
    assert stream(includes_now=True).hash != plain
    typed = [Field(f.name, Float64 if f.name == "dep_delay" else f.dtype) for f in FIELDS]
    assert stream(source=EventSource("departures", typed)).hash != plain
    assert view(ttl="1h").hash == view(ttl="60min").hash
    assert len({view(ttl=ttl).hash for ttl in (None, "1h", "2h")}) == 3
    assert view(fields=["speed", "at"]).hash != view(fields=["at", "speed"]).hash


def test_a_service_s_hash_follows_its_order_and_its_views() -> None:
    two = view(fields=["speed", "dep_delay"])
    hashes = {
        FeatureService("s", 1, [two]).hash,
        FeatureService("s", 2, [two]).hash,
        FeatureService("s", 1, [two["dep_delay", "speed"]]).hash,
        FeatureService("s", 1, [view(fields=["speed", "dep_delay"], ttl="1h")]).hash,
    }
    assert len(hashes) == 4
    assert FeatureService("s", 1, [two["speed", "dep_delay"]]).hash in hashes


@pytest.mark.parametrize(
    ("length", "label"),
    [
        ("24h", "24h"),
        (timedelta(days=1), "1d"),
        (timedelta(minutes=90), "90min"),
        (timedelta(seconds=90), "90s"),
        (timedelta(milliseconds=1500), "1500ms"),
    ],
)
def test_a_window_is_labelled_as_it_was_written(length: str | timedelta, label: str) -> None:
    assert Window(length, hop=length).label == label


def test_a_window_shows_itself() -> None:
    assert repr(WEEK) == "Window('7d', hop='1h')"
    assert repr(Window(timedelta(microseconds=4), timedelta(microseconds=2))) == (
        "Window('4us', hop='2us')"
    )


def test_the_bounds_of_a_window_are_told() -> None:
    window = Window("20min", "5min")
    minute_us = 60_000_000
    assert window.bounds_us(23 * minute_us) == (0, 23 * minute_us)
    assert window.bounds_us(25 * minute_us) == (5 * minute_us, 25 * minute_us)
    assert window.bounds_us(-1) == (-25 * minute_us, -1)


def test_lateness_is_a_duration_and_no_longer_than_a_window_reaches() -> None:
    with pytest.raises(InvalidArgumentError, match="allowed_lateness"):
        stream(allowed_lateness="soon")
    reach_us = stream().allowed_lateness_us
    assert stream(allowed_lateness="400d").allowed_lateness_us == reach_us
    assert stream(allowed_lateness="1s").allowed_lateness_us == 1_000_000


def test_windows_of_every_kind_have_names_of_their_own() -> None:
    windows = [
        Window("1d", hop="1d"),
        TumblingWindow("1d"),
        TumblingWindow("1d", previous=True),
        LifetimeWindow(),
        SessionWindow("30min", max_length="12h"),
    ]
    made = stream(Aggregation(None, ["count"], windows))
    assert list(made.feature_dtypes) == [
        "count_1d",
        "count_tumbling_1d",
        "count_previous_1d",
        "count_lifetime",
        "count_session_30min",
    ]
    assert not made.forgets
    assert stream().forgets
    meanings = [window.meaning() for window in windows]
    assert all(meanings.count(one) == 1 for one in meanings)


def test_only_the_hops_of_sliding_windows_must_divide_one_another() -> None:
    windows = [HOUR, TumblingWindow("7d"), TumblingWindow("30d"), LifetimeWindow()]
    assert stream(Aggregation(None, ["count"], windows)).hops_us[0] == HOUR.hop_us


def test_the_bounds_of_a_tumbling_window() -> None:
    day_us = 86_400_000_000
    assert TumblingWindow("1d").bounds_us(5 * day_us + 7) == (5 * day_us, 5 * day_us + 7)
    assert TumblingWindow("1d").bounds_us(5 * day_us) == (5 * day_us, 5 * day_us)
    assert TumblingWindow("1d", previous=True).bounds_us(5 * day_us + 7) == (4 * day_us, 5 * day_us)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TumblingWindow("0s"),
        lambda: SessionWindow("7min", max_length="1h"),
        lambda: SessionWindow("1s", max_length="7d"),
        lambda: SessionWindow("0s", max_length="7d"),
    ],
)
def test_a_window_that_cannot_be_is_refused(make: Callable[[], Window]) -> None:
    with pytest.raises(InvalidArgumentError):
        make()


def test_the_names_and_types_of_functions() -> None:
    made = stream(
        Aggregation("dep_delay", ["last", "variance", "rate"], [HOUR]),
        Aggregation("speed", ["first", "decayed_sum"], [HOUR], half_life="90min"),
        Aggregation("tailnum", ["seconds_since_last"], [LifetimeWindow()]),
        Aggregation(None, ["decayed_count"], [HOUR], half_life="1d"),
    )
    assert made.feature_dtypes == {
        "dep_delay_last_1h": Int64,
        "dep_delay_variance_1h": Float64,
        "dep_delay_rate_1h": Float64,
        "speed_first_1h": Float64,
        "speed_decayed_sum_90min_1h": Float64,
        "tailnum_seconds_since_last_lifetime": Float64,
        "decayed_count_1d_1h": Float64,
    }


def decayed(half_life: str | None, functions: list[str]) -> StreamFeatureView:
    return stream(Aggregation("speed", functions, [HOUR], half_life=half_life))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: decayed(None, ["decayed_sum"]), "no half_life"),
        (lambda: decayed("1d", ["sum"]), "half-life"),
        (lambda: decayed("1us", ["decayed_sum"]), "1ms or more"),
        (lambda: decayed("soon", ["decayed_sum"]), "half_life is not a duration"),
        (lambda: stream(Aggregation(None, ["variance"], [HOUR])), "needs a column"),
        (lambda: stream(Aggregation("tailnum", ["last"], [HOUR])), "no meaning"),
        (lambda: stream(Aggregation(None, ["rate"], [LifetimeWindow()])), "has a length"),
    ],
)
def test_a_mistake_in_a_function_is_named(make: Callable[[], object], named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        make()


def test_the_half_life_is_in_the_hash() -> None:
    hashes = {decayed(half_life, ["decayed_mean"]).hash for half_life in ("1h", "60min", "2h")}
    assert len(hashes) == 2


def test_a_view_reads_the_fields_of_its_filters() -> None:
    late = Where("dep_delay", ">", 15)
    filtered = stream(
        Aggregation("speed", ["mean"], [HOUR], late, "late"),
        Aggregation(None, ["count"], [HOUR], ~Where("diverted", "==", True), "direct"),
    )
    assert filtered.columns == ["speed"]
    assert filtered.fields == ["speed", "dep_delay", "diverted"]
    with pytest.raises(InvalidArgumentError, match=r"view 'v'.*'tailnm'.*did you mean 'tailnum'"):
        stream(Aggregation("speed", ["mean"], [HOUR], Where("tailnm", "==", "N1"), "one"))
