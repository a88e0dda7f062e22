"""From raw flights to two versions that a registry can take, in seven steps."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from zoneinfo import ZoneInfo

from trainer import (
    Candidate,
    Period,
    Pipeline,
    Progress,
    Purpose,
    Recipe,
    Results,
    Training,
    silent,
    steps,
)

from . import data

HERE = Path(__file__).parent
EXPERIMENT = HERE / "experiment.toml"
NEW_YORK = ZoneInfo("America/New_York")


def month(number: int) -> datetime:
    """Return midnight in New York on the first of a month of 2013; 13 is January of 2014."""
    return datetime(2013 + number // 13, (number - 1) % 12 + 1, 1, tzinfo=NEW_YORK)


RECIPE = Recipe(
    model="flight_delay",
    definitions=HERE / "definitions.py",
    service="flight_delay",
    baseline_service="flight_schedule_weather",
    categories=(
        "carrier_facts:carrier_code",
        "origin_facts:origin_code",
        "airport_facts:dest_code",
        "schedule:weekday",
    ),
    label="late",
    label_time="label_time",
    classes=("on_time", "late"),
    slices=("carrier", "origin"),
    candidates=(
        Candidate(
            "champion",
            train=Period(month(1), month(9)),
            tune=Period(month(9), month(10)),
            test=Period(month(10), month(13)),
        ),
        # A month of service later, with the champion's parameters: it may only be judged from
        # November on, for it has learned October.
        Candidate(
            "challenger",
            train=Period(month(1), month(11)),
            test=Period(month(11), month(13)),
            like="champion",
        ),
    ),
    purpose=Purpose(
        owner="operations research",
        use="telling, two hours before scheduled departure, whether a flight from New York will "
        "arrive more than 15 minutes late",
        not_for="safety, crew duty or compensation",
        limits=[
            "Trained and judged on flown flights: cancelled and diverted ones have no arrival.",
            "One year, one city, 16 carriers: it has never seen the same week twice.",
            "Late flights are rare in September and twice as common in December.",
        ],
    ),
)


def ingest(context: Training) -> None:
    """Read the flights: events for the feature store, decisions with their labels to learn from."""
    flights = data.load()
    context.events = flights.events
    context.spine = flights.spine
    context.inputs |= flights.files


PIPELINE = Pipeline(
    "flight_delay",
    [
        ingest,
        steps.validate_data,
        steps.transform,
        steps.train,
        steps.evaluate,
        steps.validate_model,
        steps.register,
    ],
)


def build(
    data_dir: Path,
    progress: Progress = silent,
    threads: int = 2,
    schema_ids: Mapping[str, int] = MappingProxyType({}),
) -> Results:
    """Run the pipeline: bundles go to `data_dir/bundles/RUN/`, events to `data_dir/offline/`."""
    context = Training(
        recipe=RECIPE,
        data_dir=data_dir,
        code=HERE,
        progress=progress,
        threads=threads,
        schema_ids=schema_ids,
    )
    return steps.results(context, PIPELINE.run(context))
