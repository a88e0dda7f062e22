"""The life of a version over the full product of states and actions."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import FailedPreconditionError
from trainer.registry import TRANSITIONS, Action, State, next_state

STATES = get_args(State)
ACTIONS = get_args(Action)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("action", ACTIONS)
def test_every_pair_moves_as_the_table_says_or_is_refused(state: State, action: Action) -> None:
    if (state, action) in TRANSITIONS:
        assert next_state(state, action, "here") == TRANSITIONS[state, action]
        return
    with pytest.raises(FailedPreconditionError, match=f"here: cannot {action} it") as caught:
        next_state(state, action, "here")
    assert caught.value.got == state


@given(st.lists(st.sampled_from(ACTIONS), max_size=30))
def test_approved_is_reached_by_submit_review_approve_only(actions: list[Action]) -> None:
    """Whatever is tried, the three steps precede approval, in order; revoked and expired stay."""
    state: State = "draft"
    done: list[Action] = []
    for action in actions:
        try:
            state = next_state(state, action, "")
        except FailedPreconditionError:
            continue
        done.append(action)
        if state == "approved":
            assert done[-3:] == ["submit", "review", "approve"]
        if done[-1] in ("revoke", "expire"):
            assert not [key for key in TRANSITIONS if key[0] == state]
