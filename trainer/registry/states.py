"""The life of a version, as a table (CONTRACTS §7). Nothing outside this table moves a version."""

from __future__ import annotations

from typing import Literal

from headrace.errors import FailedPreconditionError

State = Literal["draft", "candidate", "in_review", "approved", "revoked", "expired"]
Action = Literal["submit", "review", "approve", "reject", "revoke", "expire"]

FIRST: State = "draft"

TRANSITIONS: dict[tuple[State, Action], State] = {
    ("draft", "submit"): "candidate",
    ("candidate", "review"): "in_review",
    ("candidate", "reject"): "draft",
    ("in_review", "approve"): "approved",
    ("in_review", "reject"): "draft",
    ("approved", "revoke"): "revoked",
    ("approved", "expire"): "expired",
}


def next_state(state: State, action: Action, where: str) -> State:
    """Return where `action` leads from `state`.

    Raises FailedPreconditionError, beginning with `where`, when it leads nowhere.
    """
    after = TRANSITIONS.get((state, action))
    if after is None:
        fitting = [before for before, possible in TRANSITIONS if possible == action]
        possible = [known for before, known in TRANSITIONS if before == state]
        raise FailedPreconditionError(
            f"cannot {action} it",
            where=where,
            expected=f"state {' or '.join(fitting)}",
            got=state,
            mend=f"possible now: {', '.join(possible) or 'nothing, register a new version'}",
        )
    return after
