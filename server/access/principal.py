"""Who calls, and what that one may do: scopes on names.

A name is what a call is about: a model, a feature service, or a source of events.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache

from headrace.errors import PermissionDeniedError

ANY = "*"
NEVER_S = float("inf")
# Verdicts that a grant remembers; names come from clients.
_NAMES_KEPT = 256
_NAME_SHOWN = 64


class Scope(StrEnum):
    """What a call does."""

    __hash__ = str.__hash__  # an enum's own is slow, and every call looks its scope up

    INFER = "infer"
    METADATA = "metadata"
    STATISTICS = "statistics"
    CONTROL = "control"  # load and unload models
    PREDICT = "predict"
    FEEDBACK = "feedback"
    FEATURES = "features"
    PUSH = "push"
    REPLAY = "replay"  # set `event_time`
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Rule:
    """These scopes, on names that match one of these patterns; `*` in one is any text."""

    scopes: frozenset[Scope]
    names: tuple[str, ...] = (ANY,)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls. Limits are its tenant's, which it may share with others."""

    name: str
    tenant: str
    rules: tuple[Rule, ...]


@dataclass(slots=True, eq=False)
class Grant:
    """What one credential allows until `expires_s` (seconds since 1970)."""

    principal: Principal
    expires_s: float = NEVER_S
    _verdicts: dict[tuple[Scope, str], bool] = field(default_factory=dict)

    def may(self, scope: Scope, name: str) -> bool:
        """Return whether it may do this to what has this name."""
        key = (scope, name)
        verdict = self._verdicts.get(key)
        if verdict is None:
            if len(self._verdicts) >= _NAMES_KEPT:
                self._verdicts.clear()
            verdict = self._verdicts[key] = any(
                scope in rule.scopes and matches(rule.names, name) for rule in self.principal.rules
            )
        return verdict

    def check(self, scope: Scope, name: str) -> None:
        """Raise PermissionDeniedError, which says what is missing, unless it may."""
        if not self.may(scope, name):
            raise self._denied(scope, f"on '{name[:_NAME_SHOWN]}'")

    def check_all(self, scope: Scope) -> None:
        """Raise PermissionDeniedError unless it may do this whatever the name."""
        rules = self.principal.rules
        if not any(scope in rule.scopes and ANY in rule.names for rule in rules):
            raise self._denied(scope, f"on every name ('{ANY}')")

    def check_any(self, scope: Scope) -> None:
        """Raise PermissionDeniedError unless there is a name that it may do this to."""
        if not any(scope in rule.scopes for rule in self.principal.rules):
            raise self._denied(scope, "")

    def _denied(self, scope: Scope, what: str) -> PermissionDeniedError:
        text = f"'{self.principal.name}' lacks scope '{scope}' {what}".rstrip()
        return PermissionDeniedError(text, mend="whoever keeps the access file can grant it")


def matches(patterns: Iterable[str], name: str) -> bool:
    """Return whether a name is like one of the patterns."""
    return any(_compiled(pattern).fullmatch(name) is not None for pattern in patterns)


@lru_cache(1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = map(re.escape, re.sub(r"\*+", ANY, pattern).split(ANY))
    return re.compile(".*".join(parts), re.DOTALL)
