"""The process under attack, one for all tests of a session; each test starts a server in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.attacker import Target


@pytest.fixture(scope="session")
def target_process() -> Iterator[Target]:
    target = Target()
    yield target
    target.close()


@pytest.fixture
def target(target_process: Target) -> Target:
    """The process under attack; call `start` with the limits that the test is about."""
    return target_process


@pytest.fixture
def own_target() -> Iterator[Target]:
    """A process of its own, where memory or processor time is measured."""
    target = Target()
    yield target
    target.close()
