"""Models that run other models, and the order in which they are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from headrace.errors import HeadraceError
from server.models.pbtxt import ModelConfig, read_config

CONFIG_FILE = "config.pbtxt"


def steps_of(config: ModelConfig) -> list[str]:
    """Return the models that an ensemble runs; none of any other model."""
    return list(dict.fromkeys(step.model_name for step in config.ensemble_scheduling.step))


def steps_in(folder: Path) -> list[str]:
    """Return the models that the ensemble in a folder runs, as far as that can be read."""
    path = folder / CONFIG_FILE
    try:
        if b"ensemble_scheduling" not in path.read_bytes():
            return []
        return steps_of(read_config(path))
    except (OSError, HeadraceError):  # whoever loads it says what is wrong
        return []


def in_order(names: Iterable[str], steps: Callable[[str], list[str]]) -> list[str]:
    """Return the names, and the models that they run, each behind all that it runs.

    Of a circle one stands before what it runs, and fails when it is loaded.
    """
    found: dict[str, bool] = {}  # whether it is placed
    order: list[str] = []
    # Without recursion: how deep it goes, a repository decides.
    stack = [(name, False) for name in reversed(list(names))]
    while stack:
        name, entered = stack.pop()
        if entered:
            if not found[name]:
                found[name] = True
                order.append(name)
        elif name not in found:
            found[name] = False
            stack.append((name, True))
            stack += [(step, False) for step in reversed(steps(name))]
    return order
