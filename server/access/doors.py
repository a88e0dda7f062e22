"""The gate before the doors: a tick's calls of one model are let through together.

A call costs a look-up of its credential, which its head may share with others. What is told to
those that are refused goes where the door's own answers go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter, itemgetter
from typing import Any

from headrace.errors import HeadraceError, UnauthenticatedError
from server.access.budgets import Budget, give_back
from server.access.gate import API_KEY, AUTHORIZATION, Gate, Known
from server.access.principal import Grant, Scope
from server.wire.http2.headers import Shape

Call = tuple[Any, int, Any, Any]  # connection, place, head, body
Fail = Callable[[Call, HeadraceError], None]
Group = tuple[list[Call], Any, str]  # where their answers go, and the principal's name
_HEAD = itemgetter(2)
# Of a connection: our own of HTTP/2 has who it is at its owner, which knows the transport.
_IDENTITY, _OWNERS_IDENTITY = attrgetter("identity"), attrgetter("owner.identity")
_SHAPES_MAX = 1024
_LITERALS_MAX = 4096
_NAMES = {name.encode(): name for name in (AUTHORIZATION, API_KEY)}
# A shape's place of its credential: what is known, which of the varying values, and the header.
_Place = tuple[Known, int, str]


class Admission:
    """Lets calls of a door through.

    `grant_of` finds what a head's credential allows (None: there is none), `identity_of` who a
    connection's certificate says that its client is.
    """

    def __init__(
        self,
        gate: Gate,
        grant_of: Callable[[Any], Grant | HeadraceError | None],
        identity_of: Callable[[Any], object],
    ) -> None:
        self._gate = gate
        self._grant_of = grant_of
        self._identity_of = identity_of

    def admit(
        self, name: str, rows: int, calls: list[Call], endings: Any, fail: Fail
    ) -> list[Group]:
        """Return those that may run a model, `rows` rows each, by who asks.

        The others are ended by `fail`.
        """
        groups = []
        for grant, its in self._by_grant(calls, fail):
            groups += self._let_through(grant, name, rows, its, endings, fail)
        return groups

    def permitted(
        self, scope: Scope, name: str, calls: list[Call], fail: Fail
    ) -> tuple[list[Call], list[Call]]:
        """Return those that may do this, and those whose handlers are to say why they may not.

        Who has no credential that is known is told so by `fail`.
        """
        gate = self._gate
        may: list[Call] = []
        others: list[Call] = []
        for grant, its in self._by_grant(calls, fail):
            live = gate.now_s() < grant.expires_s
            (may if live and grant.may(scope, name) else others).extend(its)
        return may, others

    def _by_grant(self, calls: list[Call], fail: Fail) -> Iterable[tuple[Grant, list[Call]]]:
        """Return the calls that have one by what they are allowed; the others are ended."""
        grants = list(map(self._grant_of, map(_HEAD, calls)))
        first = grants[0]
        if isinstance(first, Grant) and grants.count(first) == len(grants):
            return [(first, calls)]
        by_grant: dict[Grant, list[Call]] = {}
        for call, grant in zip(calls, grants, strict=True):
            if grant is None:
                grant = self._grant_of_connection(call)  # noqa: PLW2901 - the same, found elsewhere
            if isinstance(grant, Grant):
                by_grant.setdefault(grant, []).append(call)
            else:
                fail(call, grant)
        return by_grant.items()

    def _grant_of_connection(self, call: Call) -> Grant | HeadraceError:
        identity = self._identity_of(call[0])
        return identity if isinstance(identity, Grant) else self._gate.nobody(0)

    def _let_through(
        self, grant: Grant, name: str, rows: int, calls: list[Call], endings: Any, fail: Fail
    ) -> list[Group]:
        gate, who = self._gate, grant.principal.name
        try:
            gate.check(grant, Scope.INFER, name)
        except HeadraceError as error:
            for call in calls:
                fail(call, error)
            return []
        taken, budgets, reached = gate.take(grant, name, len(calls))
        if not budgets:
            return [(calls, endings, who)]
        if reached is not None:
            for call in calls[taken:]:
                fail(call, reached)
        if not taken:
            return []
        gate.owe_rows(budgets, rows * taken)
        return [(calls[:taken], _Counted(endings, budgets), who)]


class _Counted:
    """Endings that give back what their calls took."""

    __slots__ = ("_budgets", "_endings")

    def __init__(self, endings: Any, budgets: Sequence[Budget]) -> None:
        self._endings = endings
        self._budgets = budgets

    def reply_all(self, calls: Sequence[Call], *answer: Any) -> None:
        """Answer several calls."""
        give_back(self._budgets, len(calls))
        self._endings.reply_all(calls, *answer)

    def answer(self, call: Call, response: Any) -> None:
        """Answer one call."""
        give_back(self._budgets, 1)
        self._endings.answer(call, response)

    def fail(self, call: Call, error: HeadraceError) -> None:
        """End a call with an error."""
        give_back(self._budgets, 1)
        self._endings.fail(call, error)

    def drop(self, call: Call) -> None:
        """End a call whose client went away."""
        give_back(self._budgets, 1)
        self._endings.drop(call)

    def is_open(self, call: Call) -> bool:
        """Return whether the client still waits."""
        still: bool = self._endings.is_open(call)
        return still


class HeadGrants:
    """Finds the grant of HTTP/2 heads: the place of a credential is learnt once for each shape."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._places: dict[Shape, _Place | None] = {}  # None: it has no credential
        self._by_literal: dict[tuple[str, bytes], Grant] = {}

    def of(self, head: Any) -> Grant | HeadraceError | None:
        """Return what a head's credential allows, or what its call is to be told; None: it has
        none."""
        try:
            place = self._places[head.shape]
        except KeyError:
            try:
                place = self._learn(head.shape)
            except UnauthenticatedError as error:
                return error
        if place is None:
            return None
        known, at, header = place
        literal = head.literal(at)
        if literal is not None:
            grant = self._by_literal.get((header, literal))
            if grant is not None:
                return grant
        value = head.read_values()[at]
        grant = known.get(value)
        if grant is None:
            try:
                grant = self._gate.learn(header, value)
            except UnauthenticatedError as error:
                return error
        if literal is not None:
            if len(self._by_literal) >= _LITERALS_MAX:
                self._by_literal.clear()
            self._by_literal[header, literal] = grant
        return grant

    def _learn(self, shape: Shape) -> _Place | None:
        varying = [name for name, value in shape.template if value is None]
        given = [(at, _NAMES[name]) for at, name in enumerate(varying) if name in _NAMES]
        if len(given) > 1:
            raise self._gate.nobody(len(given))
        if len(self._places) >= _SHAPES_MAX:
            self._places.clear()
        place: _Place | None = None
        if given:
            ((at, header),) = given
            place = self._gate.known[header], at, header
        self._places[shape] = place
        return place


def grpc_admission(gate: Gate) -> Admission:
    """Return what is before a door of gRPC's."""
    return Admission(gate, HeadGrants(gate).of, _OWNERS_IDENTITY)


def rest_admission(gate: Gate) -> Admission:
    """Return what is before a door of REST's."""

    def grant_of(head: Any) -> Grant | HeadraceError | None:
        if gate.known.keys().isdisjoint(head.headers):
            return None
        try:
            return gate.grant_of_headers(head.headers)
        except UnauthenticatedError as error:
            return error

    return Admission(gate, grant_of, _IDENTITY)
