"""Who a handler works for: set by the guard around it, asked where the call's name is known.

Context variables carry it, so that what lies between (protocols, streams, both wires) need not know
of it, and the tasks that a stream starts know it, too. Without access control there is nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial

from server.access.budgets import Budget
from server.access.gate import Gate
from server.access.principal import Grant, Scope


class Caller:
    """One call's principal. `asked` tells whether anybody has asked what it may."""

    __slots__ = ("_gate", "asked", "grant")

    def __init__(self, gate: Gate, grant: Grant) -> None:
        self._gate = gate
        self.grant = grant
        self.asked = False

    def check(self, scope: Scope, name: str) -> None:
        """Raise PermissionDeniedError unless it may, UnauthenticatedError when its time is over."""
        self.asked = True
        self._gate.check(self.grant, scope, name)

    @contextmanager
    def at_work(self, scope: Scope, name: str) -> Iterator[None]:
        """As `check`; count the call against its tenant's limits. Raises LimitReached, too."""
        self.check(scope, name)
        with self._gate.at_work(self.grant, name) as budgets:
            before = _drawn_on.set((self._gate, budgets))
            try:
                yield
            finally:
                _drawn_on.reset(before)

    @contextmanager
    def streaming_at_work(self, scope: Scope, name: str) -> Iterator[Callable[[int], None]]:
        """As `at_work`, for generators, which may end in another task; gives what takes rows."""
        self.check(scope, name)
        with self._gate.at_work(self.grant, name) as budgets:
            yield partial(self._gate.owe_rows, budgets)


_current: ContextVar[Caller | None] = ContextVar("caller", default=None)
_drawn_on: ContextVar[tuple[Gate, Sequence[Budget]] | None] = ContextVar("budgets", default=None)


def current_caller() -> Caller | None:
    """Return whom this task works for; None without access control."""
    return _current.get()


def work_for(caller: Caller) -> None:
    """Let the rest of this task work for this caller. Each call has a task of its own."""
    _current.set(caller)


def check_caller(scope: Scope, name: str) -> None:
    """Raise as `Caller.check` where there is access control."""
    caller = _current.get()
    if caller is not None:
        caller.check(scope, name)


def streaming_at_work(scope: Scope, name: str) -> AbstractContextManager[Callable[[int], None]]:
    """Return `Caller.streaming_at_work`, or what does nothing without access control."""
    caller = _current.get()
    return nullcontext(_no_limit) if caller is None else caller.streaming_at_work(scope, name)


def _no_limit(_: int) -> None:
    """Count no rows."""


def take_rows(rows: int) -> None:
    """Count the rows of this task's call against its tenant's limits, if it has any."""
    drawn_on = _drawn_on.get()
    if drawn_on is not None:
        gate, budgets = drawn_on
        gate.owe_rows(budgets, rows)
