"""Versions with their approvals, releases, definitions, runs, and the audit of them all."""

from trainer.registry.artifacts import ArtifactStore
from trainer.registry.records import (
    PRODUCTION,
    Approval,
    Definitions,
    Event,
    Head,
    Model,
    Release,
    ReleaseEntry,
    Run,
    Version,
)
from trainer.registry.registry import Registry
from trainer.registry.states import TRANSITIONS, Action, State, next_state

__all__ = [
    "PRODUCTION",
    "TRANSITIONS",
    "Action",
    "Approval",
    "ArtifactStore",
    "Definitions",
    "Event",
    "Head",
    "Model",
    "Registry",
    "Release",
    "ReleaseEntry",
    "Run",
    "State",
    "Version",
    "next_state",
]
