"""Triton's rate limiter: a run begins when the resources that its model lists are free.

Models that wait for a resource have turns: one with priority 2 gets half as many as one with
priority 1. Turns are kept as in stride scheduling (Waldspurger and Weihl, 1995), so who had nothing
to run saves up none, and who waits keeps those behind it off what it needs: none waits for ever.
Runs begin and end in one loop; claims are made in any thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from headrace.errors import FailedPreconditionError


class Owner(Protocol):
    """Who runs what a claim is for."""

    @property
    def could_run(self) -> bool:
        """Whether it would begin a run if it had the resources."""

    def go_on(self) -> None:
        """Try again, soon."""


class Claim:
    """What each run of a model needs. Its owner takes it before a run and gives it back after.

    `shared` is the part that all workers count together.
    """

    def __init__(
        self, limiter: RateLimiter, needs: Mapping[str, int], priority: int, shared: frozenset[str]
    ) -> None:
        self.needs = dict(needs)
        self.shared = {name: count for name, count in needs.items() if name in shared}
        self.priority = max(priority, 1)
        self.owner: Owner | None = None
        self.turn = 0  # of its next run: the least goes first
        self._limiter = limiter

    def take(self) -> bool:
        """Take the resources if they are free and it is its turn; else its owner hears when to try
        again."""
        return self._limiter.take(self)

    def give(self) -> None:
        """Give them back."""
        self._limiter.give(self)


class Shared(Protocol):
    """What all workers of a machine count together, beside what each counts by itself."""

    def take(
        self, needs: Mapping[str, int], counts: Mapping[str, int], again: Callable[[], None]
    ) -> bool:
        """Take it if it is free; else `again` is called in a moment."""

    def give(self, needs: Mapping[str, int]) -> None:
        """Give it back."""

    def give_up(self) -> None:
        """Wait for nothing any more."""


class RateLimiter:
    """Resources by name, in any case. `given` are counts; of others there is as much as the model
    needs that needs most. Without `shared` what is to be counted together is counted here alone."""

    def __init__(self, given: Mapping[str, int], shared: Shared | None = None) -> None:
        self._shared = shared
        self._given = {name.lower(): count for name, count in given.items()}
        self._counts = dict(self._given)
        self._taken: Counter[str] = Counter()
        self._waiting: list[Claim] = []  # in the order in which they came
        self._turn = 0  # of the latest run

    def claim(self, needs: Mapping[str, int], priority: int, shared: Iterable[str] = ()) -> Claim:
        """Return a model's claim; those of `shared` are counted together with other workers'.

        Raises FailedPreconditionError when it could never be met.
        """
        needs = {name.lower(): count for name, count in needs.items()}
        for name, count in needs.items():
            limit = self._given.get(name, count)
            if limit < count:
                raise FailedPreconditionError(
                    f'Resource count for "{name}" is limited to {limit} which will prevent '
                    "scheduling of one or more model instances, the minimum required count is "
                    f"{count}",
                    mend="raise --rate-limit-resource, or lower the rate_limiter's count",
                )
            self._counts[name] = max(self._counts.get(name, 0), count)
        return Claim(self, needs, priority, frozenset(map(str.lower, shared)))

    def take(self, claim: Claim) -> bool:
        """As `Claim.take`."""
        self._forget_idle()
        waits = claim in self._waiting
        if not waits:
            claim.turn = max(claim.turn, self._turn)
        if not self._is_free(claim) or not self._take_shared(claim):
            if not waits:
                self._waiting.append(claim)
            return False
        if waits:
            self._waiting.remove(claim)
        self._taken.update(claim.needs)
        self._turn = claim.turn
        claim.turn += claim.priority
        return True

    def give(self, claim: Claim) -> None:
        """As `Claim.give`."""
        self._taken.subtract(claim.needs)
        if self._shared is not None and claim.shared:
            self._shared.give(claim.shared)
        self.try_again()

    def try_again(self) -> None:
        """Something may be free: let who waits try, in turn."""
        self._forget_idle()
        if self._shared is not None and not any(claim.shared for claim in self._waiting):
            self._shared.give_up()
        for other in self._in_turn():
            assert other.owner is not None
            other.owner.go_on()

    def _take_shared(self, claim: Claim) -> bool:
        if self._shared is None or not claim.shared:
            return True
        return self._shared.take(claim.shared, self._counts, self.try_again)

    def _is_free(self, claim: Claim) -> bool:
        """Return whether it fits beside what runs, and all that it needs is nobody's before it."""
        if any(self._taken[name] + n > self._counts[name] for name, n in claim.needs.items()):
            return False
        before = self._in_turn()
        if claim in before:
            before = before[: before.index(claim)]
        else:
            before = [other for other in before if other.turn <= claim.turn]
        return all(claim.needs.keys().isdisjoint(other.needs) for other in before)

    def _in_turn(self) -> list[Claim]:
        return sorted(self._waiting, key=lambda claim: claim.turn)

    def _forget_idle(self) -> None:
        """Whoever has nothing to run any more is in nobody's way."""
        self._waiting = [
            claim for claim in self._waiting if claim.owner is not None and claim.owner.could_run
        ]


def claim_of(config: Any, limiter: RateLimiter | None) -> Claim | None:
    """Return what a ModelConfig's runs need, None for nothing; of several instance groups the most.

    Raises FailedPreconditionError as `RateLimiter.claim`.
    """
    if limiter is None:
        return None
    needs: dict[str, int] = {}
    priorities = []
    shared = set()
    for group in config.instance_group:
        priorities.append(group.rate_limiter.priority)
        for resource in group.rate_limiter.resources:
            name = resource.name.lower()
            needs[name] = max(needs.get(name, 0), resource.count)
            if getattr(resource, "global"):
                shared.add(name)
    return limiter.claim(needs, min(priorities), shared) if needs else None
