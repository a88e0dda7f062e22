"""Which models of a repository answer by way of the response cache."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import count

from server.execution.response_cache import CachedRuns, ResponseCache
from server.models.loaded import LoadedModel
from server.models.repository import ModelRepository

_LOG = logging.getLogger(__name__)


class CachedModels:
    """Gives the cache to the models that ask for it, at every change of what serves.

    What was replaced or unloaded leaves nothing in it. Without a `cache` it says of which models
    one is missing.
    """

    def __init__(self, repository: ModelRepository, cache: ResponseCache | None) -> None:
        self._repository = repository
        self._cache = cache
        self._numbers = count(1)
        self._owners: dict[LoadedModel, int] = {}
        repository.on_change.append(self._look)

    def _look(self) -> None:
        models = [
            model
            for model in self._repository.models()
            if isinstance(model, LoadedModel) and model.config.response_cache.enable
        ]
        if self._cache is None:
            _warn(models)
            return
        self._owners = {
            model: self._owners.get(model) or self._begin(self._cache, model) for model in models
        }
        self._cache.keep(self._owners.values())

    def _begin(self, cache: ResponseCache, model: LoadedModel) -> int:
        owner = next(self._numbers)
        model.cached = CachedRuns(cache, owner, model.batcher.submit)
        return owner


def _warn(models: Iterable[LoadedModel]) -> None:
    for model in models:
        _LOG.warning(
            "model %s asks for the response cache, and there is none: start with --cache-config",
            model.name,
        )
