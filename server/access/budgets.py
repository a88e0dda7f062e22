"""How much a tenant may ask for: requests and rows a second, and requests at work.

A budget of requests or rows is a token bucket: it fills at its rate up to `burst`. Rows are known
once a request is read, so they are taken on credit: who is in debt waits until it is paid.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.errors import ResourceExhaustedError
from server.access.principal import ANY, matches

_NS_PER_S = 1_000_000_000
# Tenants come from tokens, too. The one that has not called for longest is forgotten.
_TENANTS_MAX = 4096


@dataclass(frozen=True, slots=True)
class Limit:
    """What each tenant of this name (`*`: every one) may ask of names like these, all together.

    None is no limit. `burst` is the number of requests that may come at once after a pause; without
    it a second's worth.
    """

    tenant: str = ANY
    names: tuple[str, ...] = (ANY,)
    requests_per_s: float | None = None
    burst: float | None = None
    rows_per_s: float | None = None
    concurrent: int | None = None

    def share(self, parts: int) -> Limit:
        """Return the part that one of so many workers takes; of requests at work at least one."""
        concurrent = self.concurrent
        return Limit(
            self.tenant,
            self.names,
            _part(self.requests_per_s, parts),
            _part(self.burst, parts),
            _part(self.rows_per_s, parts),
            None if concurrent is None else max(concurrent // parts, 1),
        )


def _part(value: float | None, parts: int) -> float | None:
    return None if value is None else value / parts


class LimitReached(ResourceExhaustedError):  # noqa: N818 - what happened, not what it is
    """A tenant has used up what it may. `kind`: requests, rows or concurrent."""

    kind = ""


_TEXTS = {
    "requests": "the tenant's limit of requests a second is reached",
    "rows": "the tenant's limit of rows a second is reached",
    "concurrent": "the tenant's limit of requests at work is reached",
}


def _exhausted(kind: str, wait_s: float) -> LimitReached:
    error = LimitReached(_TEXTS[kind], mend=f"try again in {max(wait_s, 0.001):.3f} s")
    error.retry_after_s = wait_s
    error.kind = kind
    return error


class Bucket:
    """Tokens that come at `rate_per_s`, and of which at most `burst` wait."""

    __slots__ = ("_burst", "_rate_per_s", "_seen_ns", "_tokens")

    def __init__(self, rate_per_s: float, burst: float, now_ns: int) -> None:
        self._rate_per_s = rate_per_s
        self._burst = max(burst, 1.0)
        self._tokens = self._burst
        self._seen_ns = now_ns

    def take(self, wanted: int, now_ns: int) -> int:
        """Take up to `wanted` whole tokens; return how many there were."""
        self._fill(now_ns)
        taken = min(wanted, max(int(self._tokens), 0))
        self._tokens -= taken
        return taken

    def owe(self, count: int, now_ns: int) -> None:
        """Take tokens whether they are there or not."""
        self._fill(now_ns)
        self._tokens -= count

    def wait_s(self, now_ns: int) -> float:
        """Return how long it takes until there is a token; 0 when there is one."""
        self._fill(now_ns)
        return max((1.0 - self._tokens) / self._rate_per_s, 0.0)

    def _fill(self, now_ns: int) -> None:
        elapsed_ns = max(now_ns - self._seen_ns, 0)
        self._seen_ns = max(now_ns, self._seen_ns)
        filled = self._tokens + elapsed_ns / _NS_PER_S * self._rate_per_s
        self._tokens = min(filled, self._burst)


class Budget:
    """What is left of one limit to one tenant."""

    __slots__ = ("at_work", "concurrent", "requests", "rows")

    def __init__(self, limit: Limit, now_ns: int) -> None:
        rate, rows = limit.requests_per_s, limit.rows_per_s
        self.requests = None if rate is None else Bucket(rate, limit.burst or rate, now_ns)
        self.rows = None if rows is None else Bucket(rows, rows, now_ns)
        self.concurrent = limit.concurrent
        self.at_work = 0

    def room(self, wanted: int, now_ns: int) -> tuple[int, LimitReached | None]:
        """Return how many of `wanted` requests there is room for, and what the others are told.

        Only requests and rows a second are looked at, and requests are taken.
        """
        if self.rows is not None and (wait_s := self.rows.wait_s(now_ns)) > 0:
            return 0, _exhausted("rows", wait_s)
        if self.concurrent is not None and self.concurrent - self.at_work < wanted:
            room = max(self.concurrent - self.at_work, 0)
            taken, error = self._take(room, now_ns)
            return taken, error or _exhausted("concurrent", 1.0)
        return self._take(wanted, now_ns)

    def _take(self, wanted: int, now_ns: int) -> tuple[int, LimitReached | None]:
        if self.requests is None:
            return wanted, None
        taken = self.requests.take(wanted, now_ns)
        if taken == wanted:
            return taken, None
        return taken, _exhausted("requests", self.requests.wait_s(now_ns))


class Budgets:
    """The budgets of all tenants under these limits. `now_ns` is a monotonic clock."""

    def __init__(self, limits: Sequence[Limit], now_ns: Callable[[], int]) -> None:
        self.now_ns = now_ns
        self.limits: tuple[Limit, ...] = ()
        self._budgets: OrderedDict[str, list[Budget | None]] = OrderedDict()
        self._by_name: dict[tuple[str, str], tuple[Budget, ...]] = {}
        self.set(limits)

    def set(self, limits: Sequence[Limit]) -> None:
        """Put others in their place. Every bucket is full then; what is at work is not counted."""
        self.limits = tuple(limits)
        self._budgets.clear()
        self._by_name.clear()

    def of(self, tenant: str, name: str) -> tuple[Budget, ...]:
        """Return the budgets that a tenant's request about this name draws on."""
        if not self.limits:
            return ()
        found = self._by_name.get((tenant, name))
        if found is None:
            found = self._find(tenant, name)
        return found

    def _find(self, tenant: str, name: str) -> tuple[Budget, ...]:
        own = self._budgets.get(tenant)
        if own is None:
            if len(self._budgets) >= _TENANTS_MAX:
                self._budgets.popitem(last=False)
                self._by_name.clear()
            now_ns = self.now_ns()
            own = self._budgets[tenant] = [
                Budget(limit, now_ns) if limit.tenant in {ANY, tenant} else None
                for limit in self.limits
            ]
        else:
            self._budgets.move_to_end(tenant)
        if len(self._by_name) >= _TENANTS_MAX:
            self._by_name.clear()
        found = tuple(
            budget
            for limit, budget in zip(self.limits, own, strict=True)
            if budget is not None and matches(limit.names, name)
        )
        self._by_name[tenant, name] = found
        return found


def take(budgets: Sequence[Budget], wanted: int, now_ns: int) -> tuple[int, LimitReached | None]:
    """Take room for `wanted` requests of all budgets; return how many, and why not all.

    Those that one budget lets through count there though the next one may refuse them: who knocks
    too often does not get more by it. The caller gives back what is at work.
    """
    error: LimitReached | None = None
    for budget in budgets:
        room, refused = budget.room(wanted, now_ns)
        if refused is not None:
            error, wanted = refused, room
        if not wanted:
            return 0, error
    for budget in budgets:
        budget.at_work += wanted
    return wanted, error


def give_back(budgets: Sequence[Budget], count: int) -> None:
    """Say that so many requests are no longer at work."""
    for budget in budgets:
        budget.at_work -= count


def owe_rows(budgets: Sequence[Budget], rows: int, now_ns: int) -> None:
    """Take the rows of requests that were let through."""
    for budget in budgets:
        if budget.rows is not None:
            budget.rows.owe(rows, now_ns)
