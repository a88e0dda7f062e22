"""On-demand views: what they are given, what they may give back, and what their hash covers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from features import (
    Bool,
    Column,
    Entity,
    EventSource,
    FeatureView,
    Field,
    Float32,
    Float64,
    Int64,
    OnDemandFeatureView,
    RequestSource,
    String,
    Table,
    Timestamp,
    on_demand_feature_view,
)
from features.on_demand import function_text
from headrace.errors import FailedPreconditionError, InvalidArgumentError

FLIGHT = RequestSource("flight", [Field("scheduled", Timestamp), Field("zone", String)])
PLANES = EventSource("planes", [Field("tailnum", String), Field("year", Int64)])
PLANE = FeatureView("plane", Entity("plane", ["tailnum"]), PLANES, ["year", "tailnum"])
FIELDS = [Field("age", Int64), Field("share", Float32), Field("old", Bool), Field("label", String)]
EPOCH_YEAR = 1970
LIMITS = {"old": (20, 40), "names": {"b", "a"}}
TABLE = np.arange(3)


def ages(inputs: Table) -> Table:
    year = inputs["plane:year"]
    return {
        "age": Column(older(year.values), year.valid),
        "share": Column(np.full(len(year), 0.1)),
        "old": Column(older(year.values) > LIMITS["old"][0]),
        "label": Column(np.array(["x"] * len(year), dtype=object)),
    }


def older(year: np.ndarray) -> np.ndarray:
    return year - EPOCH_YEAR


def view(function: Callable[[Table], Table] = ages) -> OnDemandFeatureView:
    return OnDemandFeatureView("ages", [FLIGHT, PLANE["year"]], FIELDS, function)


def years(*values: int) -> Table:
    return {"plane:year": Column(np.array(values, dtype=np.int64))}


def test_the_decorator_takes_name_and_description_from_the_function() -> None:
    @on_demand_feature_view(inputs=[FLIGHT], fields=[Field("hour", Int64)])
    def calendar(inputs: Table) -> Table:
        """When it leaves."""
        return {"hour": Column(inputs["scheduled"].values // 3_600_000_000 % 24)}

    assert (calendar.name, calendar.description) == ("calendar", "When it leaves.")
    assert calendar({"scheduled": Column(np.array([7_200_000_000]))})["hour"].values.tolist() == [2]


def test_what_it_needs_is_known() -> None:
    assert view().requests == [FLIGHT]
    assert view().stored == [(PLANE, ["year"])]
    assert OnDemandFeatureView("v", [PLANE], FIELDS, ages).stored == [(PLANE, ["year", "tailnum"])]


def test_columns_come_back_with_the_dtypes_of_the_fields() -> None:
    output = view().compute(years(1980, 2000), 2)
    assert output["age"].values.dtype == np.int64
    assert output["old"].values.tolist() == [False, True]
    assert output["share"].values.dtype == np.float64
    assert output["label"].values.tolist() == ["x", "x"]


def good() -> Table:
    return ages(years(1980, 2000))


BROKEN: list[tuple[Callable[[Table], object], str]] = [
    (lambda _: {}["secret"], "the function failed with KeyError$"),
    (lambda _: None, "the result is no table.*expected a dict of columns, got NoneType"),
    (lambda _: {k: v for k, v in good().items() if k != "age"}, "field 'age'.*got NoneType"),
    (lambda _: good() | {"aged": Column(TABLE)}, "unknown field in the result 'aged'.*'age'"),
    (lambda _: good() | {"age": TABLE}, "field 'age'.*a Column, got ndarray"),
    (lambda _: good() | {"age": Column(TABLE)}, "'age' has a wrong length.*expected 2, got 3"),
    (
        lambda _: good() | {"age": Column(TABLE[:2], np.ones(3, dtype=np.bool_))},
        "'age' has a wrong length",
    ),
    (lambda _: good() | {"age": Column(np.zeros(2))}, "'age' has a wrong type.*int64, got float64"),
    (lambda _: good() | {"old": Column(np.zeros(2, int))}, "'old' has a wrong type.*bool"),
    (lambda _: good() | {"label": Column(np.array(["x", "y"]))}, "'label' has a wrong type"),
]


@pytest.mark.parametrize(("function", "message"), BROKEN)
def test_a_function_that_breaks_its_word_is_named(
    function: Callable[[Table], Table], message: str
) -> None:
    with pytest.raises(
        (FailedPreconditionError, InvalidArgumentError), match=f"on-demand view 'ages': .*{message}"
    ) as caught:
        view(function).compute(years(1980, 2000), 2)
    assert "secret" not in str(caught.value), "the text of the team's exception stays inside"


def test_the_hash_covers_the_function_its_helpers_and_its_constants() -> None:
    text = function_text(ages)
    assert "def ages" in text
    assert "def older" in text
    assert "EPOCH_YEAR: 1970" in text
    assert "LIMITS: {'old': (20, 40), 'names': {'a', 'b'}}" in text
    assert "good" not in text


def test_the_hash_covers_inputs_and_fields() -> None:
    plain = view().hash
    assert plain == view().hash
    others = [
        OnDemandFeatureView("ages", [FLIGHT, PLANE], FIELDS, ages),
        OnDemandFeatureView("ages", [FLIGHT, PLANE["year"]], FIELDS[:2], ages),
        OnDemandFeatureView("ages", [FLIGHT, PLANE["year"]], FIELDS, lambda inputs: inputs),
        OnDemandFeatureView(
            "ages", [RequestSource("flight", [Field("zone", Float64)]), PLANE["year"]], FIELDS, ages
        ),
    ]
    assert len({plain, *(other.hash for other in others)}) == 5


def test_constants_have_one_text_in_every_process() -> None:
    scope: dict[str, object] = {
        "np": np,
        "ARRAY": TABLE,
        "NAMES": frozenset({"b", "a"}),
        "MAKE": Column,
        "OBJECT": object(),
    }
    code = "def f(t):\n return [np.sum(ARRAY), NAMES, MAKE, OBJECT, g(t)]\ndef g(t):\n return f"
    exec(code, scope)
    text = function_text(scope["f"])  # type: ignore[arg-type]
    assert "NAMES: {'a', 'b'}" in text
    assert "ARRAY: array int64 (3,) sha256:" in text
    assert "MAKE: Column" in text
    assert "OBJECT: object" in text
    assert "np: numpy" in text
    assert "f: sha256:" in text, "without a file, the compiled code stands for the source"
