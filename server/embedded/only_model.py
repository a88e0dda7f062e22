"""The one bundle of a Predictor, as a loader finds it and as a release plan serves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.errors import NotFoundError
from router import Arm, LogPolicy, ModelPlan, Policy, Router
from server.execution.session import Session
from server.models.bundles import ReleasedModel
from server.models.graphs import DEFAULT_MAX_BATCH_SIZE, can_batch
from server.models.versions import Version
from trainer.bundle import Bundle


class OneBundle:
    """Where a loader finds it."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def get(self, digest: str) -> Bundle:
        """Return it."""
        assert digest == self._bundle.digest
        return self._bundle


class OneModel:
    """A release plan of one version, which is always drawn and never logged."""

    def __init__(self, version: Version) -> None:
        name = version.manifest.name
        arms = [Arm("live", version.digest, "live")]
        plan = ModelPlan(Policy("single"), arms, LogPolicy(sample=0.0))
        self._model = ReleasedModel(name, 1, plan, Router(plan, 1), {version.digest: version})

    def get(self, name: str) -> ReleasedModel:
        """Return it. Raises NotFoundError for another name."""
        if name != self._model.name:
            raise NotFoundError(f"model '{name}' is not loaded here")
        return self._model


@dataclass(frozen=True)
class _OneResponse:
    decoupled: bool = False


@dataclass(frozen=True)
class PlainConfig:
    """What a loaded model asks of a ModelConfig, for a graph that nobody has configured.

    The message itself is for clients, and comes with gRPC.
    """

    max_batch_size: int
    instance_group: tuple[Any, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    model_transaction_policy: _OneResponse = _OneResponse()

    @classmethod
    def of_graph(cls, _: str, session: Session) -> PlainConfig:
        """Return the configuration of a session's graph."""
        return cls(DEFAULT_MAX_BATCH_SIZE if can_batch(session) else 0)

    def HasField(self, _: str) -> bool:  # noqa: N802 - protobuf's name
        """Return False: nothing is configured."""
        return False
