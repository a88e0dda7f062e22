"""Finds log rows that never arrived, by the gaps in each worker's row numbers."""

from __future__ import annotations


class Sequences:
    """Every row that a worker makes takes the next number, whether it is sent or dropped, from 0 at
    each start. A batch that begins above the expected number tells how many rows are missing; one
    that begins below it means that the worker was started again.
    """

    def __init__(self) -> None:
        self.lost = 0
        self.restarts = 0
        self._expected: dict[int, int] = {}

    def observe(self, worker: int, first_sequence: int, rows: int) -> int:
        """Take note of a batch and return how many rows are missing before it."""
        expected = self._expected.get(worker, 0)
        if first_sequence < expected:
            self.restarts += 1
            expected = 0
        missing = first_sequence - expected
        self.lost += missing
        self._expected[worker] = first_sequence + rows
        return missing
