"""The release plan feed: who asks with the number it has gets the next plan as soon as there is
one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from headrace.errors import FailedPreconditionError

WAIT_S_MAX = 60.0

Plan = dict[str, Any]


class PlanFeed:
    """Holds the current plan. `read` fetches it from the registry (it blocks: run in a thread)."""

    def __init__(self, read: Callable[[], Plan]) -> None:
        self._read = read
        self._plan: Plan = {"plan": 0, "models": {}}
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def plan(self) -> Plan:
        """The current plan; number 0 while nothing was ever released."""
        return self._plan

    async def refresh(self) -> None:
        """Read the registry again and wake who waits, if the number grew."""
        plan = await asyncio.to_thread(self._read)
        if plan["plan"] > self._plan["plan"]:
            self._plan = plan
            self._wake()

    async def wait(self, after: int, wait_s: float) -> Plan | None:
        """Return the plan once its number is above `after`; None after `wait_s` seconds or a close.

        Raises FailedPreconditionError when `after` is ahead of the registry.
        """
        if after > self._plan["plan"]:
            raise FailedPreconditionError(
                f"plan {after} is ahead of this registry's plan {self._plan['plan']}",
                mend="this is another registry than the one that the plan came from: use that one, "
                "or remove run/plan.json there to start afresh",
            )
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + min(wait_s, WAIT_S_MAX)
        while self._plan["plan"] <= after and not self._closed:
            try:
                async with asyncio.timeout_at(deadline_s):
                    await self._changed.wait()
            except TimeoutError:
                return None
        return None if self._plan["plan"] <= after else self._plan

    def close(self) -> None:
        """Answer everybody who waits, and nobody waits any more: control ends."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        # A fresh event for the next change: who waits on this one wakes exactly once.
        self._changed.set()
        self._changed = asyncio.Event()
