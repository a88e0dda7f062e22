"""When to try again, without a clock: time left and randomness are passed in."""

from __future__ import annotations

import threading
from typing import Final

RETRIED: Final = frozenset({"unavailable", "resource_exhausted"})
ATTEMPTS_MAX: Final = 5
WAIT_FIRST_S: Final = 0.1
WAIT_MAX_S: Final = 2.0
BUDGET_RATIO: Final = 0.1
BUDGET_MAX: Final = 10.0


class RetryBudget:
    """So many retries as one in ten calls, after a first ten: a server in need gets no storm.

    A bucket of tokens: each call puts a tenth of one in, each retry takes one out. Threads may
    share it.
    """

    def __init__(self) -> None:
        self._tokens = BUDGET_MAX
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Count a call."""
        with self._lock:
            self._tokens = min(BUDGET_MAX, self._tokens + BUDGET_RATIO)

    def spend(self) -> bool:
        """Take a retry; False: none is left."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


def backoff_s(
    code: str, attempts: int, left_s: float, retry_after_s: float | None, random: float
) -> float | None:
    """Return the wait before the next attempt; None: there is no use in one.

    It doubles each time, and is spread over half of itself. `attempts` have failed, the last with
    `code`; `random` is in [0, 1). The server's own `retry_after_s` is the least, so that nobody
    comes back before it. A wait that outlasts `left_s`, the rest of the deadline, is no use.
    """
    if code not in RETRIED or attempts >= ATTEMPTS_MAX:
        return None
    wait_s = min(WAIT_MAX_S, WAIT_FIRST_S * 2.0 ** (attempts - 1)) * (0.5 + random / 2)
    if retry_after_s is not None:
        wait_s += retry_after_s
    return wait_s if wait_s < left_s else None


def retry_after_s(metadata: dict[str, str | bytes]) -> float | None:
    """Return what the server's `retry-after` says, in seconds; None for none."""
    text = metadata.get("retry-after")
    if not isinstance(text, str) or not text.isascii() or not text.isdigit():
        return None
    return float(text)
