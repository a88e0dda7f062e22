"""Lots: what the queue in front of a session holds.

A lot is one request, or many of one shape that came together; the batcher joins lots, cuts them
and hands them their answers without knowing which transport waits for them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy.typing as npt

from headrace.errors import DeadlineExceededError, HeadraceError, ResourceExhaustedError

Array = npt.NDArray[Any]
NEVER_NS = 1 << 63


@dataclass(slots=True)
class Timing:
    """Where the time of one request went, ns: waiting, joining, running and splitting its batch.

    The batch had `batch_rows` rows and began at `started_ns` (monotonic).
    """

    queue_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int
    started_ns: int = 0
    batch_rows: int = 0


class Lot(Protocol):
    """`count` requests of `rows` rows each, that arrived at `arrived_ns` (monotonic).

    `shape` is the shape of every feed behind its first dimension: lots of one shape can join.
    """

    @property
    def count(self) -> int:
        """How many requests are in it now."""

    @property
    def rows(self) -> int:
        """Rows of each request."""

    @property
    def shape(self) -> tuple[tuple[int, ...], ...]:
        """One shape per feed, without the first dimension."""

    @property
    def arrived_ns(self) -> int:
        """When it came."""

    @property
    def priority(self) -> int:
        """What its requests asked for: 1 is the first to run, 0 leaves it to the model."""

    def who(self) -> dict[str, str]:
        """Say which request it is (the first of them), for the log."""

    @property
    def first_deadline_ns(self) -> int:
        """The first deadline of its requests; NEVER_NS without any."""

    @property
    def timeout_ns(self) -> int:
        """How long its requests ask to wait at most, where the model lets them; 0: no matter."""

    @property
    def last_deadline_ns(self) -> int | None:
        """When the last of its callers has gone (monotonic); None when one may wait for ever."""

    def keep_live(self, now_ns: int, answered_ns: float, *, ask: bool) -> int:
        """End the requests whose deadline is before they would be answered; return how many are
        left.

        With `ask` also those whose caller left; without, the transport passes over them later.
        """

    def cut(self, count: int) -> Lot:
        """Take the first `count` requests (fewer than all) out, as a lot of their own."""

    def feeds(self) -> list[Array]:
        """Return the feeds of all requests joined, in the session's order; for any thread."""

    def answer(self, outputs: list[Array], timing: Timing) -> None:
        """End all requests with the session's outputs, joined as the feeds were."""

    def fail(self, error: HeadraceError) -> None:
        """End all requests with one error."""


def deadline_passed() -> DeadlineExceededError:
    """Return the error of a request that waited longer than its caller."""
    return DeadlineExceededError("the caller's deadline passed in the model's queue")


def not_in_time() -> ResourceExhaustedError:
    """Return the error of a request that is refused because the model has too much to do."""
    return ResourceExhaustedError(
        "the model cannot answer before the caller's deadline: too much waits before it",
        mend="ask again later or elsewhere, with a longer deadline, or of more workers",
    )


def why_late(deadline_ns: int, now_ns: int) -> HeadraceError:
    """Return the error of a request that would be answered too late, or is too late by now."""
    return deadline_passed() if deadline_ns <= now_ns else not_in_time()


@dataclass(slots=True)
class Request:
    """The lot of one request that a coroutine awaits."""

    arrays: list[Array]
    rows: int
    deadline_ns: int | None
    future: asyncio.Future[tuple[list[Array], Timing]]
    arrived_ns: int = field(default_factory=time.monotonic_ns)
    count: int = 1
    priority: int = 0
    timeout_ns: int = 0
    who: Callable[[], dict[str, str]] = dict

    @property
    def shape(self) -> tuple[tuple[int, ...], ...]:
        """One shape per feed, without the first dimension."""
        return tuple(array.shape[1:] for array in self.arrays)

    @property
    def first_deadline_ns(self) -> int:
        """Its deadline."""
        return NEVER_NS if self.deadline_ns is None else self.deadline_ns

    @property
    def last_deadline_ns(self) -> int | None:
        """Its own."""
        return self.deadline_ns

    def keep_live(self, now_ns: int, answered_ns: float, *, ask: bool) -> int:
        """Return 1 while somebody waits for it."""
        if self.future.done():  # the caller went away
            return 0
        if self.deadline_ns is not None and answered_ns >= self.deadline_ns:
            self.future.set_exception(why_late(self.deadline_ns, now_ns))
            return 0
        return 1

    def cut(self, count: int) -> Request:
        """Never called: one request cannot be cut."""
        raise AssertionError(f"{count} requests of one")

    def feeds(self) -> list[Array]:
        """Return the feeds as they came."""
        return self.arrays

    def answer(self, outputs: list[Array], timing: Timing) -> None:
        """Wake the caller, if there still is one."""
        if not self.future.done():
            self.future.set_result((outputs, timing))

    def fail(self, error: HeadraceError) -> None:
        """Wake the caller, if there still is one."""
        if not self.future.done():
            self.future.set_exception(error)
