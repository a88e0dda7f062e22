# ruff: noqa
# fmt: off
"""Part of a bundle whose digest is pinned: not a byte of it may change."""
import numpy as np

from features import (
    Aggregation, Bool, Column, Entity, EventSource, FeatureService, FeatureView, Field, Float32,
    Float64, Int64, RequestSource, StreamFeatureView, String, Window, on_demand_feature_view,
)

user = Entity("user", ["user_id"])
payments = EventSource("payments", [
    Field("user_id", Int64), Field("amount", Float64), Field("country", String),
    Field("risk", Float32),
])
asked = RequestSource("asked", [Field("price", Float64)])
activity = StreamFeatureView("activity", user, payments, [
    Aggregation("amount", ["count", "sum", "mean", "max"], [Window("1h", "1min")]),
])
last_payment = FeatureView("last_payment", user, payments, ["amount", "country", "risk"], "30d")


@on_demand_feature_view(
    inputs=[asked, activity["amount_mean_1h"]], fields=[Field("is_dearer", Bool)]
)
def comparison(inputs):
    price, mean = inputs["price"], inputs["activity:amount_mean_1h"]
    return {"is_dearer": Column(np.greater(price.values, mean.values), price.mask & mean.mask)}


score = FeatureService("score", 1, [activity, last_payment["amount", "risk"], comparison])
