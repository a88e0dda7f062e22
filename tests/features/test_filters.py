"""Filters: three-valued as in SQL, each mistake named, their meaning in the hash."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features import (
    Aggregation,
    Array,
    Bool,
    Bytes,
    DType,
    Entity,
    EventSource,
    Field,
    Float32,
    Float64,
    Int64,
    StreamFeatureView,
    String,
    Uuid,
    Where,
    Window,
)
from features.filters import Filter
from features.types import Column, Table
from headrace.errors import InvalidArgumentError
from tests.features.oracle import holds

SOURCE = EventSource(
    "payments",
    [
        Field("card", Int64),
        Field("cents", Int64),
        Field("risk", Float64),
        Field("share", Float32),
        Field("kind", String),
        Field("online", Bool),
    ],
)
VALUES = {
    "cents": [None, 0, -1, 7, 2**62],
    "risk": [None, 0.0, 0.1, -3.5, float("nan")],
    "share": [None, float(np.float32(0.1)), 0.5],
    "kind": [None, "", "refund", "é"],
    "online": [None, True, False],
}
COMPARED = {
    "cents": st.sampled_from([0, 7, 2**62, 2**62 - 1]),
    "risk": st.sampled_from([0, -0.0, 0.1, 5]),
    "share": st.sampled_from([float(np.float32(0.1)), 0.25]),
    "kind": st.sampled_from(["", "a", "refund", "é"]),
    "online": st.booleans(),
}


@st.composite
def comparisons(draw: st.DrawFn) -> Filter:
    field = draw(st.sampled_from(sorted(VALUES)))
    ordered = [] if field == "online" else ["<", "<=", ">", ">=", "in"]
    operator = draw(st.sampled_from(["==", "!=", "is null", *ordered]))
    if operator == "is null":
        return Where(field, operator)
    if operator == "in":
        return Where(field, operator, draw(st.lists(COMPARED[field], min_size=1, max_size=3)))
    return Where(field, operator, draw(COMPARED[field]))


filters = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        inner.map(lambda one: ~one),
        st.tuples(inner, inner).map(lambda two: two[0] & two[1]),
        st.tuples(inner, inner).map(lambda two: two[0] | two[1]),
    ),
    max_leaves=5,
)
rows = st.fixed_dictionaries({name: st.sampled_from(VALUES[name]) for name in sorted(VALUES)})


def table_of(events: list[dict[str, object]]) -> Table:
    table: Table = {}
    for name in VALUES:
        dtype = SOURCE.dtypes[name].numpy
        # None under a null of text: nothing may be compared with it.
        blank: object = None if dtype.kind == "O" else 0
        values = [event[name] for event in events]
        table[name] = Column(
            np.array([blank if v is None else v for v in values], dtype=dtype),
            np.array([v is not None for v in values], dtype=np.bool_),
        )
    return table


@given(filters, st.lists(rows, max_size=6))
def test_a_filter_judges_as_its_meaning_says(
    asked: Filter, events: list[dict[str, object]]
) -> None:
    asked.check(SOURCE, "here")
    true, false = asked.judge(table_of(events), SOURCE.dtypes)
    said = [True if t else False if f else None for t, f in zip(true, false, strict=True)]
    assert said == [holds(asked.meaning(), event) for event in events]
    assert not (true & false).any()


def test_a_value_for_a_float32_is_rounded_to_it() -> None:
    column = Column(np.array([0.1, float(np.float32(0.1)), 0.5]))
    true, _ = Where("share", "==", 0.1).judge({"share": column}, SOURCE.dtypes)
    assert true.tolist() == [True, True, False]


def view(where: object, label: object = "some") -> StreamFeatureView:
    aggregation = Aggregation("cents", ["sum"], [Window("1h", hop="1min")], where, label)  # type: ignore[arg-type]
    return StreamFeatureView("spending", Entity("card", ["card"]), SOURCE, [aggregation])


@pytest.mark.parametrize(
    ("where", "label", "named"),
    [
        (Where("knd", "==", "refund"), "some", "kind"),
        (Where("cents", "==", "refund"), "some", "'refund'"),
        (Where("cents", ">", 1.5), "some", "int64"),
        (Where("cents", ">", 2**63), "some", "int64"),
        (Where("cents", "==", True), "some", "int64"),
        (Where("risk", "==", float("nan")), "some", "float64"),
        (Where("risk", "==", 2**53 + 1), "some", "float64"),
        (Where("kind", "in", ["a", 1]), "some", "string"),
        (Where("online", "<", True), "some", "no order"),
        (Where("kind", "==", "refund"), None, "label"),
        (Where("kind", "==", "refund"), "re fund", "label"),
        (None, "some", "label alone"),
        ("kind = 'refund'", "some", "must be a filter"),
    ],
)
def test_a_mistake_is_named(where: object, label: object, named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        view(where, label)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Where("kind", "=", "refund"),
        lambda: Where("kind", "in", "refund"),
        lambda: Where("kind", "in", []),
        lambda: Where("kind", "is null", 1),
        lambda: Where("kind", "==", "a") and Where("kind", "==", "b"),
        lambda: not Where("kind", "==", "a"),
    ],
)
def test_what_is_no_question_is_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidArgumentError):
        make()


def test_a_filter_is_in_the_names_and_the_hash() -> None:
    refunds, others = view(Where("kind", "==", "refund")), view(Where("kind", "!=", "refund"))
    assert list(refunds.feature_dtypes) == ["cents_sum_1h_some"]
    assert refunds.fields == ["cents", "kind"]
    assert refunds.hash != others.hash != view(None, None).hash
    assert refunds.hash == view(Where("kind", "==", "refund")).hash


@pytest.mark.parametrize("dtype", [Bytes, Uuid, Array(String), Array(Float32)])
def test_what_has_no_order_can_be_asked_for_null_only(dtype: DType) -> None:
    source = EventSource("things", [Field("thing", dtype)])
    Where("thing", "is null").check(source, "here")
    with pytest.raises(InvalidArgumentError, match="'thing' can only be asked whether it is null"):
        Where("thing", "==", "a").check(source, "here")
