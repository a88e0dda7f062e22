"""Fixtures that every folder's tests share."""

import gc

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.support.valkey"]

# How long an example takes says more of the machine than of the code.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What a file's tests left open is found at its end, and not in somebody else's test."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
