"""Finds log rows that never arrived, by the gaps in each worker's row numbers."""

from __future__ import annotations


class Sequences:
    """Every row that a worker makes takes the next number, whether it is sent or dropped, from 0 at
    each start. A batch that begins above the expected number tells how many rows are missing; one
    that begins below it was seen before: a worker sends again what it is not sure of.

    A worker that is met for the first time may have run for long (the collector was started again),
    so that its first number is where counting begins.
    """

    def __init__(self) -> None:
        self.lost = 0
        self.restarts = 0
        self.repeated = 0
        self._workers: set[int] = set()
        self._expected: dict[tuple[int, bytes | None], int] = {}

    def observe(
        self, worker: int, start: bytes | None, first_sequence: int, rows: int
    ) -> int | None:
        """Take note of a batch and return how many rows are missing before it; None for a batch
        that repeats rows, which must not be taken again.

        `start` names one run of the worker. A worker of an older release sends none: a batch of its
        that begins too low is taken for a restart.
        """
        run = (worker, start)
        expected = self._expected.get(run)
        if expected is None:
            again = worker in self._workers
            self.restarts += again
            expected = 0 if again else first_sequence
            self._workers.add(worker)
        elif first_sequence < expected:
            if start is not None:
                self.repeated += rows
                return None
            self.restarts += 1
            expected = 0
        missing = first_sequence - expected
        self.lost += missing
        self._expected[run] = first_sequence + rows
        return missing
