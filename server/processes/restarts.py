"""When a dead child is started again, and when it is given up. No clock, no random source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Times in seconds. The defaults give up after about 12 s of a child that dies at once."""

    base_s: float = 0.2
    cap_s: float = 10.0
    stable_s: float = 30.0  # ready for this long: what went before is forgiven
    failures_max: int = 6  # so many deaths in a row without a stable time are a crash loop


class Restarts:
    """Counts one child's deaths. Exponential backoff with jitter, so that N workers that died of
    one cause do not all come back in the same instant.
    """

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self.failures = 0

    def delay_s(self, ready_s: float, jitter: float) -> float | None:
        """Return the seconds to wait before the next start, or None for a crash loop.

        `ready_s`: how long the child was ready before it died (0 = never); `jitter`: uniform in
        [0, 1), which scales the wait by 0.5 to 1.5.
        """
        policy = self._policy
        if ready_s >= policy.stable_s:
            self.failures = 0
        self.failures += 1
        if self.failures >= policy.failures_max:
            return None
        wait_s = min(policy.cap_s, policy.base_s * 2.0 ** (self.failures - 1))
        return wait_s * (0.5 + jitter)
