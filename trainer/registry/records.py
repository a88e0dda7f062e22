"""What the registry tells about: versions, approvals, releases, definitions, runs, events."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from trainer.registry.states import State

Role = Literal["live", "canary", "shadow"]
PRODUCTION = "production"  # the environment that is meant when none is named


class Approval(msgspec.Struct, frozen=True):
    """Someone's word for the bytes of one digest, until `expires_us` (None: without end)."""

    approver: str
    why: str
    when_us: int
    expires_us: int | None


class Version(msgspec.Struct, frozen=True):
    """One bundle under one model's name; `number` counts from 1 in each model."""

    model: str
    digest: str
    number: int
    state: State
    author: str
    why: str
    registered_us: int
    approvals: list[Approval]


class Model(msgspec.Struct, frozen=True):
    """A model in short: how many versions, the live digest, the sequence of its last release."""

    name: str
    versions: int
    champion: str | None
    sequence: int


class ReleaseEntry(msgspec.Struct, frozen=True):
    """One version's part in a release. Without `arm` it keeps its arm, or gets the next letter."""

    version: str
    role: Role = "live"
    weight: float = 1.0
    arm: str | None = None


class Release(msgspec.Struct, frozen=True):
    """One entry of the append-only list of an environment and model; `back_to`: a rollback.

    `explain` is the share of answers that are logged with attributions; absent: none.
    """

    environment: str
    model: str
    sequence: int
    plan: int
    entries: list[ReleaseEntry]
    policy_kind: Literal["weighted", "single"]
    key: str
    salt: str
    by: str
    why: str
    when_us: int
    back_to: int | None
    explain: float | msgspec.UnsetType = msgspec.UNSET


class Definitions(msgspec.Struct, frozen=True):
    """Feature definitions as applied: their source, and the schema id of each view's hash."""

    sequence: int
    digest: str
    source: bytes
    ids: dict[str, int]
    by: str
    why: str
    when_us: int


class Run(msgspec.Struct, frozen=True):
    """One run of a pipeline, as it described itself."""

    run: str
    by: str
    recorded_us: int
    body: dict[str, Any]


class Event(msgspec.Struct, frozen=True):
    """One line of the audit: who did what to what, why and when, chained to the line before."""

    sequence: int
    when_us: int
    actor: str
    action: str
    subject: str
    why: str
    body: dict[str, Any]
    hash: str


class Head(msgspec.Struct, frozen=True):
    """The end of the audit chain. Kept elsewhere, it proves that nothing was cut off since."""

    sequence: int
    hash: str
