"""What is known of flights from New York: defined once, used for training and serving alike.

Names of features are `view:feature`, as in `plane_landings:arr_delay_mean_24h`.
"""

import numpy as np

from features import (
    Aggregation,
    Column,
    Entity,
    EventSource,
    FeatureService,
    FeatureView,
    Field,
    Float64,
    Int64,
    RequestSource,
    StreamFeatureView,
    String,
    Table,
    TableSource,
    Timestamp,
    Window,
    local_hour,
    local_weekday,
    on_demand_feature_view,
)

MINUTE_US, HOUR_US = 60_000_000, 3_600_000_000
NEW_YORK = "America/New_York"
DISTANCE_BUCKETS_MILES = [500, 1000, 1500, 2500]

# Entities: what the application names in a request.
plane = Entity("plane", ["tailnum"])
carrier = Entity("carrier", ["carrier"])
origin = Entity("origin", ["origin"])
destination = Entity("destination", ["dest"])
route = Entity("route", ["route"], "such as EWR-ORD")

# Sources: what happens (events), what is so (tables), and what only the caller knows (the request).
FLIGHT = [Field(name, String) for name in ("tailnum", "carrier", "origin", "dest", "route")]
departures = EventSource(
    "departures",
    [*FLIGHT, Field("dep_delay", Int64, "minutes"), Field("departed", Timestamp)],
)
landings = EventSource(
    "landings",
    [
        *FLIGHT,
        Field("dep_delay", Int64, "minutes"),
        Field("arr_delay", Int64, "minutes"),
        Field("landed", Timestamp),
    ],
)
WEATHER = [
    "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib",
]  # fmt: skip
weather_reports = EventSource(
    "weather", [Field("origin", String), *(Field(name, Float64) for name in WEATHER)]
)
planes = TableSource(
    "planes",
    [
        Field("tailnum", String),
        Field("built", Int64, "year"),
        Field("engines", Int64),
        Field("seats", Int64),
        Field("maker", Int64, "a number for each manufacturer"),
    ],
)
airports = TableSource(
    "airports",
    [
        Field("dest", String),
        Field("lat", Float64, "degrees"),
        Field("lon", Float64, "degrees"),
        Field("alt", Int64, "feet"),
        Field("dest_code", Int64, "a number for each airport"),
    ],
)
origins = TableSource("origins", [Field("origin", String), Field("origin_code", Int64)])
carriers = TableSource("carriers", [Field("carrier", String), Field("carrier_code", Int64)])
routes = TableSource("routes", [Field("route", String), Field("distance", Int64, "miles")])
request = RequestSource(
    "schedule", [Field("scheduled_departure", Timestamp), Field("scheduled_arrival", Timestamp)]
)

# How late things have run: per plane, carrier, origin and route, over four windows.
WINDOWS = [
    Window("1h", hop="1min"),
    Window("6h", hop="5min"),
    Window("24h", hop="1h"),
    Window("7d", hop="1h"),
]
DEP_DELAYS = [Aggregation("dep_delay", ["count", "mean", "max"], WINDOWS)]
ARR_DELAYS = [Aggregation("arr_delay", ["count", "mean", "max"], WINDOWS)]
plane_departures = StreamFeatureView("plane_departures", plane, departures, DEP_DELAYS)
plane_landings = StreamFeatureView("plane_landings", plane, landings, ARR_DELAYS)
carrier_departures = StreamFeatureView("carrier_departures", carrier, departures, DEP_DELAYS)
carrier_landings = StreamFeatureView("carrier_landings", carrier, landings, ARR_DELAYS)
origin_departures = StreamFeatureView("origin_departures", origin, departures, DEP_DELAYS)
origin_landings = StreamFeatureView("origin_landings", origin, landings, ARR_DELAYS)
route_departures = StreamFeatureView("route_departures", route, departures, DEP_DELAYS)
route_landings = StreamFeatureView("route_landings", route, landings, ARR_DELAYS)

# What was last known.
last_departure = FeatureView("last_departure", plane, departures, ["dep_delay", "departed"])
last_leg = FeatureView("last_leg", plane, landings, ["dep_delay", "arr_delay", "landed"])
weather = FeatureView("weather", origin, weather_reports, WEATHER, ttl="3h")
plane_facts = FeatureView("plane_facts", plane, planes, ["built", "engines", "seats", "maker"])
airport_facts = FeatureView(
    "airport_facts", destination, airports, ["lat", "lon", "alt", "dest_code"]
)
origin_facts = FeatureView("origin_facts", origin, origins, ["origin_code"])
carrier_facts = FeatureView("carrier_facts", carrier, carriers, ["carrier_code"])
route_facts = FeatureView("route_facts", route, routes, ["distance"])


@on_demand_feature_view(
    inputs=[request, route_facts, plane_facts],
    fields=[
        Field("hour", Int64, "of the scheduled departure, on New York's clocks"),
        Field("weekday", Int64, "0 is Monday"),
        Field("duration", Float64, "scheduled, minutes"),
        Field("distance_bucket", Int64),
        Field("plane_age", Int64, "years"),
    ],
)
def schedule(inputs: Table) -> Table:
    """What follows from the schedule."""
    departure, arrival = inputs["scheduled_departure"], inputs["scheduled_arrival"]
    distance, built = inputs["route_facts:distance"], inputs["plane_facts:built"]
    year = departure.values.astype("M8[us]").astype("M8[Y]").astype(np.int64) + 1970
    bucket = np.digitize(distance.values, DISTANCE_BUCKETS_MILES)
    return {
        "hour": Column(local_hour(departure.values, NEW_YORK), departure.valid),
        "weekday": Column(local_weekday(departure.values, NEW_YORK), departure.valid),
        "duration": difference(arrival, departure, MINUTE_US),
        "distance_bucket": Column(bucket, distance.valid),
        "plane_age": Column(year - built.values, departure.mask & built.mask),
    }


@on_demand_feature_view(
    inputs=[request, last_departure, last_leg],
    fields=[Field("since_departure", Float64, "hours"), Field("since_landing", Float64, "hours")],
)
def turnaround(inputs: Table) -> Table:
    """How long before this departure the plane was last seen to leave and to land."""
    departure = inputs["scheduled_departure"]
    return {
        "since_departure": difference(departure, inputs["last_departure:departed"], HOUR_US),
        "since_landing": difference(departure, inputs["last_leg:landed"], HOUR_US),
    }


def difference(later: Column, earlier: Column, unit_us: float) -> Column:
    """Return the time between two columns in `unit_us`; null where either is."""
    return Column((later.values - earlier.values) / unit_us, later.mask & earlier.mask)


# Services: the columns of a model, in this order.
SCHEDULE_AND_WEATHER = [
    weather,
    plane_facts,
    airport_facts,
    origin_facts,
    carrier_facts,
    route_facts,
    schedule,
]
flight_schedule_weather = FeatureService(
    "flight_schedule_weather", version=1, features=SCHEDULE_AND_WEATHER
)
flight_delay = FeatureService(
    "flight_delay",
    version=1,
    features=[
        plane_departures,
        plane_landings,
        carrier_departures,
        carrier_landings,
        origin_departures,
        origin_landings,
        route_departures,
        route_landings,
        last_departure["dep_delay"],
        last_leg["dep_delay", "arr_delay"],
        turnaround,
        *SCHEDULE_AND_WEATHER,
    ],
)
