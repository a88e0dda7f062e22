from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from features import definitions_from_source
from headrace.errors import InvalidArgumentError
from tests.trainer import shop
from trainer.data_checks import check_events, check_spine
from trainer.recipe import Candidate, Period

DEFINITIONS = definitions_from_source(shop.DEFINITIONS.encode())
EVENTS, SPINE = shop.tables()


def without(table: pa.Table, name: str) -> pa.Table:
    return table.drop_columns([name])


def with_column(table: pa.Table, name: str, values: object) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


ORDERS = EVENTS["orders"]
COUNT = ORDERS.num_rows
NOT_A_NUMBER = np.where(np.arange(COUNT) == 7, np.nan, 1.0)
LATE = ORDERS["event_time"].to_numpy() - (np.arange(COUNT) == 7)


def test_good_data_passes(tmp_path):
    check_events(DEFINITIONS, EVENTS)
    check_spine(SPINE, DEFINITIONS.service("rich"), shop.recipe(tmp_path))


@pytest.mark.parametrize(
    ("orders", "named"),
    [
        (None, "source 'orders': no events"),
        (without(ORDERS, "price"), "source 'orders': no column 'price'"),
        (without(ORDERS, "event_time"), "no column 'event_time'"),
        (with_column(ORDERS, "returned", np.ones(COUNT)), "'returned' has another type.*double"),
        (with_column(ORDERS, "price", NOT_A_NUMBER), "'price' holds NaN"),
        (with_column(ORDERS, "price", NOT_A_NUMBER * np.inf), "'price' holds NaN"),
        (with_column(ORDERS, "event_time", [None] * COUNT), "'event_time' has another type"),
        (
            with_column(ORDERS, "event_time", [None, *ORDERS["event_time"].to_pylist()[1:]]),
            "'event_time' holds nulls",
        ),
        (with_column(ORDERS, "created_time", LATE), "1 events were created before they happened"),
    ],
)
def test_events_that_are_not_as_defined_are_named(orders, named):
    events = {name: table for name, table in EVENTS.items() if name != "orders"}
    if orders is not None:
        events["orders"] = orders
    with pytest.raises(InvalidArgumentError, match=named):
        check_events(DEFINITIONS, events)


SWAPPED = np.r_[1, 0, 2 : SPINE.num_rows]


@pytest.mark.parametrize(
    ("spine", "named"),
    [
        (without(SPINE, "shop"), "no column 'shop'"),
        (without(SPINE, "price_asked"), "no column 'price_asked'"),
        (without(SPINE, "returned"), "no column 'returned'"),
        (with_column(SPINE, "returned", [None] * SPINE.num_rows), "'returned' holds nulls"),
        (SPINE.take(SWAPPED), "not in the order of event_time"),
        (with_column(SPINE, "known", SPINE["event_time"]), "would leak"),
        (with_column(SPINE, "returned", [True] * SPINE.num_rows), "the train period of 'champion'"),
    ],
)
def test_a_spine_that_does_not_fit_is_named(spine, named, tmp_path):
    with pytest.raises(InvalidArgumentError, match=named):
        check_spine(spine, DEFINITIONS.service("rich"), shop.recipe(tmp_path))


def test_a_period_without_rows_is_named(tmp_path):
    recipe = shop.recipe(tmp_path)
    champion = replace(recipe.champion, tune=Period(shop.day(200), shop.day(300)))
    assert isinstance(champion, Candidate)
    with pytest.raises(InvalidArgumentError, match=r"the tune period of 'champion'.*in 0 rows"):
        check_spine(SPINE, DEFINITIONS.service("rich"), replace(recipe, candidates=(champion,)))
