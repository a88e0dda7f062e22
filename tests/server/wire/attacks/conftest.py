"""The process under attack, one for all tests of a session; each test starts a server in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.attacker import Target
from tests.support.http_target import http_target  # noqa: F401 - a fixture


@pytest.fixture(scope="session")
def target_process() -> Iterator[Target]:
    target = Target()
    yield target
    target.close()


@pytest.fixture
def target(target_process: Target) -> Target:
    """The process under attack; call `start` with the limits that the test is about."""
    return target_process


@pytest.fixture(scope="session")
def own_target() -> Iterator[Target]:
    """A second process, for the tests that measure memory or processor time."""
    target = Target()
    yield target
    target.close()
