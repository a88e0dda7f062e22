"""The example's experiment.toml: which versions share the traffic, how, and from when."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from headrace.errors import InvalidArgumentError
from headrace.times import to_us


class Arm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One arm: `version` names a bundle of the pipeline, `from` the time of its release."""

    arm: str
    version: str
    role: Literal["live", "canary", "shadow"]
    weight: float
    from_: datetime = msgspec.field(name="from")

    @property
    def from_us(self) -> int:
        """When it joins, microseconds since the epoch."""
        return to_us(self.from_)


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    model: str
    policy: str
    key: str
    start: datetime
    end: datetime


class Experiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    experiment: _Head
    arms: list[Arm]

    @property
    def model(self) -> str:
        """The model's name in the registry."""
        return self.experiment.model

    @property
    def start_us(self) -> int:
        """When the replay starts."""
        return to_us(self.experiment.start)


def read_experiment(path: Path) -> Experiment:
    """Read the file. Raises InvalidArgumentError that says what is wrong with it."""
    try:
        found = msgspec.toml.decode(path.read_bytes(), type=Experiment)
    except msgspec.DecodeError as error:
        raise InvalidArgumentError(f"not a valid experiment: {error}", where=path.name) from None
    if not found.arms:
        raise InvalidArgumentError("an experiment needs an arm", where=path.name)
    return found
