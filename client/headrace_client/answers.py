"""What calls return: plain values, no messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

STATUSES: Final = ("present", "null", "not_found", "expired", "unavailable")


@dataclass(frozen=True, slots=True)
class Explanation:
    """What each feature added to each score; with `base` they add up to it.

    `attributions` and `errors` (standard errors; none where the method is exact) hold one list a
    feature, by its name, of one number a score.
    """

    method: str
    base: list[float]
    attributions: dict[str, list[float]]
    errors: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one row. Keep `id`: Feedback is given under it."""

    id: UUID
    version: str
    arm: str  # "" under no release plan
    outputs: list[float]
    decision: str | None
    features: bytes | None  # the packed row, where it was asked for
    explanation: Explanation | None


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """Features by name: a list of values and one of `STATUSES`, one element a row."""

    values: dict[str, list[Any]]
    status: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Truth:
    """How a prediction turned out. `event_time_us`: when; the server's clock where None."""

    prediction_id: UUID | str | bytes
    name: str
    value: float
    event_time_us: int | None = None
    source: str = ""
