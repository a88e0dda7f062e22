"""The people of the demo against a real control."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from server.control.app import Control
from server.control.client import ControlClient
from server.demo.experiment import Arm
from server.demo.governance import AUTHOR, REVIEWER, Governance
from tests.support.bundles import make_bundle

START = datetime(2013, 10, 1, tzinfo=UTC)


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[ControlClient]:
    running = Control(tmp_path, None)
    port = await running.start("127.0.0.1", 0)
    try:
        yield ControlClient(f"http://127.0.0.1:{port}")
    finally:
        await running.stop(1.0)


def release_two(governance: Governance, folder: Path) -> dict[int, list[str]]:
    """Register and approve two versions, release one, then both; plan number → its arms."""
    digests = []
    for name in ("Champion", "Challenger"):
        make_bundle(folder / name, name)
        digests.append(governance.register(folder / name, name, "pipeline run"))
        governance.approve(digests[-1], claim="better", seen="sound")
    arms = [
        Arm("a", "champion", "live", 0.9, START),
        Arm("b", "challenger", "canary", 0.1, START),
    ]
    both = dict(zip(digests, arms, strict=True))
    first = governance.release({digests[0]: arms[0]}, "first release")
    second = governance.release(both, "canary")
    return {first: ["a"], second: ["a", "b"]}


async def test_two_people_bring_two_versions_to_a_release(
    control: ControlClient, tmp_path: Path
) -> None:
    governance = Governance(control, "delay", {})
    plans = await asyncio.to_thread(release_two, governance, tmp_path / "bundles")
    first, second = plans
    assert second > first > 0
    plan = await asyncio.to_thread(control.plan)
    assert plan is not None
    assert plan["plan"] == second
    assert [arm["arm"] for arm in plan["models"]["delay"]["arms"]] == plans[second]
    assert governance.refusal

    trail = await asyncio.to_thread(governance.trail)
    acts = [(event.actor, event.action, event.refused) for event in trail]
    life = [
        (AUTHOR, "register", False),
        (AUTHOR, "submit", False),
        (REVIEWER, "review", False),
        (REVIEWER, "approve", False),
    ]
    refused = (AUTHOR, "approve", True)
    released = (REVIEWER, "release", False)
    assert acts == [*life[:3], refused, life[3], *life, released, released]
    assert trail[-1].subject == "Champion 90\u202f%, Challenger 10\u202f%"
    assert trail[-1].why == "canary"
    assert trail[-2].subject == "Champion 100\u202f%"


async def test_a_roll_back_is_told_as_one(control: ControlClient, tmp_path: Path) -> None:
    governance = Governance(control, "delay", {})
    await asyncio.to_thread(release_two, governance, tmp_path / "bundles")
    await asyncio.to_thread(control.rollback, "delay", REVIEWER, "enough seen")
    trail = await asyncio.to_thread(governance.trail)
    assert trail[-1].action == "roll back"
    assert trail[-1].subject == "Champion 100\u202f%"
