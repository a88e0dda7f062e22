"""A small problem with everything that the steps need: will a shop's order be returned?"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from headrace.times import DAY_US, HOUR_US, to_us
from trainer.recipe import Candidate, Period, Purpose, Recipe, Training

DEFINITIONS = """
from features import *

shop = Entity("shop", ["shop"])
orders = EventSource(
    "orders", [Field("shop", String), Field("returned", Int64), Field("price", Float64)]
)
shops = TableSource("shops", [Field("shop", String), Field("region", Int64)])
request = RequestSource("request", [Field("price_asked", Float64)])
history = StreamFeatureView(
    "history", shop, orders, [Aggregation("returned", ["count", "mean"], [Window("1d", "1h")])]
)
last = FeatureView("last", shop, orders, ["price"], ttl="7d")
facts = FeatureView("facts", shop, shops, ["region"])


@on_demand_feature_view(inputs=[request], fields=[Field("price", Float64)])
def asked(inputs):
    return {"price": inputs["price_asked"]}


plain = FeatureService("plain", 1, [facts, asked])
rich = FeatureService("rich", 2, [history, last, facts, asked])
"""
START = datetime(2024, 1, 1, tzinfo=UTC)
ROWS = 6000
SHOPS = 12


def day(number: int) -> datetime:
    """Midnight, this many days after the start."""
    return datetime.fromtimestamp((to_us(START) + number * DAY_US) / 1e6, UTC)


def tables(seed: int = 0) -> tuple[dict[str, pa.Table], pa.Table]:
    """Events and spine: each shop has good days and bad days, and an order shows which it is."""
    rng = np.random.default_rng(seed)
    at = np.sort(rng.integers(to_us(START), to_us(day(100)), ROWS))
    shop = rng.integers(0, SHOPS, ROWS)
    mood = rng.normal(size=(SHOPS, 120)) * 2
    price = rng.gamma(2, 10, ROWS)
    score = mood[shop, (at - to_us(START)) // DAY_US] + price / 20 - 2
    returned = rng.random(ROWS) < 1 / (1 + np.exp(-score))
    names = np.array([f"shop {number}" for number in range(SHOPS)])
    known = at + rng.integers(1, 3, ROWS) * HOUR_US
    order = np.argsort(known, kind="stable")
    events = {
        "orders": pa.table(
            {
                "shop": names[shop][order],
                "returned": returned[order].astype(np.int64),
                "price": price[order],
                "event_time": known[order],
                "created_time": known[order],
            }
        ),
        "shops": pa.table(
            {
                "shop": names,
                "region": pa.array(range(SHOPS), pa.int64()),
                "event_time": np.full(SHOPS, to_us(START) - DAY_US),
                "created_time": np.full(SHOPS, to_us(START) - DAY_US),
            }
        ),
    }
    spine = pa.table(
        {
            "shop": names[shop],
            "price_asked": price,
            "event_time": at,
            "returned": returned,
            "known": known,
        }
    )
    return events, spine


def recipe(folder: Path, **changes: object) -> Recipe:
    """Champion to day 50, tuned to 65, tested to 100; challenger to day 80."""
    definitions = folder / "definitions.py"
    definitions.write_text(DEFINITIONS)
    fields = {
        "model": "returns",
        "definitions": definitions,
        "service": "rich",
        "baseline_service": "plain",
        "categories": ("facts:region",),
        "label": "returned",
        "label_time": "known",
        "classes": ("kept", "returned"),
        "slices": ("shop",),
        "candidates": (
            Candidate(
                "champion",
                train=Period(day(0), day(50)),
                tune=Period(day(50), day(65)),
                test=Period(day(65), day(100)),
            ),
            Candidate(
                "challenger",
                train=Period(day(0), day(80)),
                test=Period(day(80), day(100)),
                like="champion",
            ),
        ),
        "purpose": Purpose("the shop team", "planning returns", "judging people", ["made up"]),
        "auc_gain_min": 0.05,
    }
    return Recipe(**(fields | changes))  # type: ignore[arg-type]


def context(folder: Path, **changes: object) -> Training:
    """A context whose ingest step is already done."""
    found = Training(
        recipe=recipe(folder, **changes), data_dir=folder / "data", code=folder, threads=1
    )
    found.events, found.spine = tables()
    return found
