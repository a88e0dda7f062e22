"""From data to a governed version: pipelines, training, evaluation, bundles and the registry.

Names load on first use: the base distribution serves bundles without what trains them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.pipeline import Pipeline, Progress, silent
    from trainer.project import load_project
    from trainer.recipe import Candidate, Period, Purpose, Recipe, Results, Training

_HOMES = {
    "trainer.pipeline": ("Pipeline", "Progress", "silent"),
    "trainer.project": ("load_project",),
    "trainer.recipe": ("Candidate", "Period", "Purpose", "Recipe", "Results", "Training"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Candidate",
    "Period",
    "Pipeline",
    "Progress",
    "Purpose",
    "Recipe",
    "Results",
    "Training",
    "load_project",
    "silent",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
