"""When a model will have answered what waits for it: from how long its batches took, and what runs.

Under more load than a model can take, a queue without this collapses: every request waits just
longer than its caller does, and all work is for nobody. What cannot be answered in time is better
refused at once, so that what is begun is of use. Nothing here reads the clock.
"""

from __future__ import annotations

from server.execution.run_times import RunTimes

# A queue under overload stands where the forecast meets the deadlines: what it lets in must still
# be in time when runs take somewhat longer than they did.
MARGIN = 1.5
_ANY = 1 << 40


class Forecast:
    """Of one queue: batches of at most `rows_max` rows (0: of one request), `runs_max` at a time.

    Times are monotonic nanoseconds.
    """

    def __init__(self, rows_max: int, runs_max: int = 1) -> None:
        self.times = RunTimes()
        self.rows_max = rows_max
        self._runs_max = runs_max
        self._ends_ns: list[float] = []  # of what runs now

    def begin(self, now_ns: int, work_ns: float) -> float:
        """Note that something runs from now on; hand what this returns to `finish`."""
        end_ns = now_ns + work_ns
        self._ends_ns.append(end_ns)
        return end_ns

    def finish(self, end_ns: float) -> None:
        """Note that it ended."""
        self._ends_ns.remove(end_ns)

    def work_ns(self, requests: int, rows: int) -> float:
        """Return how long it takes to run so much, one batch after another."""
        rows_max = self.rows_max
        if rows_max == 0:
            return self.times.expected_ns(1) * requests
        if rows <= rows_max:
            return self.times.expected_ns(rows)
        return self.times.expected_ns(rows_max) * rows / rows_max

    def answered_ns(self, now_ns: int, requests: int, rows: int) -> float:
        """Return when the last of `requests` is answered, `rows` in all, if they are all there is
        behind what runs."""
        work_ns = self.work_ns(requests, rows)
        if self._runs_max > 1:
            alone_ns = self.work_ns(1, min(rows, self.rows_max))
            work_ns = max(work_ns / self._runs_max, alone_ns)
        return self._free_ns(now_ns) + work_ns * MARGIN

    def answered_by(self, deadline_ns: int, now_ns: int) -> int:
        """Return how many rows (of a model without batches: requests) are answered by then, if
        they are all there is behind what runs."""
        left_ns = (deadline_ns - self._free_ns(now_ns)) / MARGIN
        rows_max = self.rows_max or 1
        batch_ns = self.times.expected_ns(rows_max)
        if left_ns >= batch_ns:
            # Whole batches: the first row of one is answered with its last.
            return int(left_ns // batch_ns) * rows_max * self._runs_max if batch_ns else _ANY
        rows = rows_max
        while rows and self.times.expected_ns(rows) > left_ns:
            rows //= 2
        return rows

    def _free_ns(self, now_ns: int) -> float:
        if len(self._ends_ns) < self._runs_max:
            return now_ns
        return max(now_ns, min(self._ends_ns))
