"""What the registry releases is a plan that the router takes, and routes by as was meant."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidArgumentError
from router import ModelPlan, Policy, Router, parse_plan
from router.plan import ARMS_MAX, WEIGHT_MAX, WEIGHT_MIN, Arm
from tests.trainer.registry.conftest import Desk
from trainer.registry import Release, ReleaseEntry, releases

DIGESTS = [f"sha256:{number:064x}" for number in range(4)]
ENTRIES = st.lists(
    st.builds(
        ReleaseEntry,
        st.sampled_from(DIGESTS),
        st.sampled_from(["live", "canary", "canary", "shadow"]),
        st.floats() | st.sampled_from([0.0, WEIGHT_MIN, WEIGHT_MAX, 0.5]),
        st.none() | st.text(max_size=4) | st.sampled_from(["a", "b", "c"]),
    ),
    max_size=ARMS_MAX + 2,
)


def routable(entries: list[ReleaseEntry]) -> bool:
    arms = [Arm(str(e.arm), e.version, e.role, e.weight) for e in entries]
    answering = sum(entry.role != "shadow" for entry in entries)
    try:
        Router(ModelPlan(Policy("single" if answering == 1 else "weighted"), arms), 1)
    except InvalidArgumentError:
        return False
    return True


def after(entries: list[ReleaseEntry]) -> Release:
    return Release("e", "m", 7, 9, entries, "weighted", "", "salt", "by", "why", 0, None)


def is_refused(entries: list[ReleaseEntry]) -> bool:
    try:
        releases.check_entries(entries, "x")
    except InvalidArgumentError:
        return True
    return False


@given(ENTRIES, st.none() | ENTRIES)
def test_what_is_accepted_can_be_routed(
    entries: list[ReleaseEntry], before: list[ReleaseEntry] | None
) -> None:
    """The two packages may not import one another, so their rules are held together here."""
    refused = is_refused(entries)
    # What is released now was accepted once.
    is_first = before is None or is_refused(before)
    now = None if is_first else after(releases.name_arms(before or [], None))
    named = releases.name_arms(entries, now)
    arms = [entry.arm for entry in named]
    given_names = [entry.arm for entry in entries if entry.arm is not None]
    if len(set(given_names)) == len(given_names):
        assert len(set(arms)) == len(arms)
    assert routable(named) is not refused


@given(ENTRIES.filter(bool), st.data())
def test_a_version_keeps_its_arm(entries: list[ReleaseEntry], data: st.DataObject) -> None:
    now = after(releases.name_arms(entries[:ARMS_MAX], None))
    entry = data.draw(st.sampled_from(now.entries))
    named = releases.name_arms([ReleaseEntry(entry.version)], now)
    assert named[0].arm in {e.arm for e in now.entries if e.version == entry.version}


@pytest.mark.parametrize(("share", "seen"), [(0.1, 0.1), (0.5, 0.5)])
def test_units_stay_on_their_arm_through_a_ramp(desk: Desk, share: float, seen: float) -> None:
    desk.approved(1)
    desk.approved(2)
    keys = [f"flight-{i}".encode() for i in range(4000)]

    def canaries(sequence: int, weight: float) -> set[bytes]:
        entries = [ReleaseEntry("v1", weight=1 - weight), ReleaseEntry("v2", "canary", weight)]
        desk.registry.release("delay", entries, "bob", "ramp", sequence)
        plan = parse_plan(json.dumps(desk.registry.plan()).encode())
        router = Router(plan.models["delay"], plan.plan)
        arms = router.route(keys).arm_index
        return {key for key, arm in zip(keys, arms, strict=True) if router.arms[arm].arm == "b"}

    few, many = canaries(0, 0.05), canaries(1, share)
    assert few < many
    assert abs(len(many) / len(keys) - seen) < 4 * (seen * (1 - seen) / len(keys)) ** 0.5
