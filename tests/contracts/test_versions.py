"""The life of a version and the roles of a release (CONTRACTS §7)."""

from __future__ import annotations

from typing import get_args

import pytest

from headrace.errors import FailedPreconditionError
from router import plan
from tests.contracts.golden import CHANGED, read_json
from trainer.registry import records, states

GOLDEN: dict[str, dict[str, str]] = read_json("versions.json")
ROLES = ("live", "canary", "shadow")


def test_the_states_and_the_first() -> None:
    assert set(get_args(states.State)) == set(GOLDEN), CHANGED
    assert states.FIRST == "draft", CHANGED


@pytest.mark.parametrize("action", get_args(states.Action))
@pytest.mark.parametrize("state", GOLDEN)
def test_every_action_in_every_state(state: states.State, action: states.Action) -> None:
    after = GOLDEN[state].get(action)
    if after is not None:
        assert states.next_state(state, action, "v1") == after, CHANGED
        return
    with pytest.raises(FailedPreconditionError, match=f"v1: cannot {action} it"):
        states.next_state(state, action, "v1")


def test_the_roles() -> None:
    assert get_args(plan.Role) == get_args(records.Role) == ROLES, CHANGED


def test_what_a_release_says() -> None:
    entry = set(records.ReleaseEntry.__struct_fields__)
    release = set(records.Release.__struct_fields__)
    assert {"version", "role", "weight"} <= entry, CHANGED
    assert {"environment", "model", "sequence", "entries", "by", "why", "when_us"} <= release, (
        CHANGED
    )
