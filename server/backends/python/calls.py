"""Requests to a Python model: in its queue, in its process, and what came of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from headrace.errors import (
    AlreadyExistsError,
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnimplementedError,
)
from server.backends.python.stub import messages
from server.execution.engine import Array, Asked, Parameter, Part
from server.execution.lots import Lot, Request, Timing, why_late

# By TritonError's codes. Of those who are cancelled none is there to hear it.
_ERRORS: dict[int, type[HeadraceError]] = {
    2: NotFoundError,
    3: InvalidArgumentError,
    4: UnavailableError,
    5: UnimplementedError,
    6: AlreadyExistsError,
    7: UnavailableError,
}
_CODES = {"not_found": 2, "invalid_argument": 3, "unavailable": 4, "unimplemented": 5,
          "already_exists": 6, "deadline_exceeded": 4, "resource_exhausted": 4}  # fmt: skip
_INTERNAL = 1


def error_of(fault: messages.Fault) -> HeadraceError:
    """Return the error that a model's fault is to its caller."""
    return _ERRORS.get(fault.code, InternalError)(fault.message)


def fault_of(error: HeadraceError) -> messages.Fault:
    """Return what a model is told of an error of another one."""
    return messages.Fault(error.message, _CODES.get(error.code, _INTERNAL))


class Holder(Protocol):
    """The process that a call is in."""

    def leave(self, call: Call) -> None:
        """Nobody waits for it any more."""

    def taken(self, call: Call) -> None:
        """One of its responses went on: another may come."""


@dataclass(slots=True, eq=False)
class Call(Request):
    """One request. With `parts` it may have many responses, which are put there; else `future` gets
    the one. A `None` among the arrays is an output that the model left out."""

    asked: Asked = field(default_factory=Asked)
    parts: asyncio.Queue[Part | HeadraceError] | None = None
    holder: Holder | None = None
    number: int = 0  # in its holder
    # Of a request with one response that a sender sent: it counts when the final flag is there.
    given: tuple[list[Array], dict[str, Parameter]] | None = None
    parameters: dict[str, Parameter] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[tuple[int, ...], ...]:
        """One shape per feed, without the first dimension; (-1,) for one that is left out."""
        return tuple((-1,) if array is None else array.shape[1:] for array in self.arrays)

    def keep_live(self, now_ns: int, answered_ns: float, *, ask: bool) -> int:
        """Return 1 while somebody waits for it."""
        if self.future.done():
            return 0
        if self.deadline_ns is not None and answered_ns >= self.deadline_ns:
            self.fail(why_late(self.deadline_ns, now_ns))
            return 0
        return 1

    def fail(self, error: HeadraceError) -> None:
        """End it with an error."""
        if self.future.done():
            return
        if self.parts is None:
            self.future.set_exception(error)
        else:
            self.future.cancel()
            self.parts.put_nowait(error)

    def part(self, part: Part, timing: Timing) -> None:
        """Take one response."""
        if self.future.done():
            return
        if self.parts is not None:
            if part.final:
                self.future.cancel()
            self.parts.put_nowait(part)
        elif part.error is not None:
            self.future.set_exception(part.error)
        else:
            self._only(part, timing)

    def _only(self, part: Part, timing: Timing) -> None:
        if part.arrays is not None:
            if self.given is not None:
                self.fail(InternalError("the model gave two responses to one request"))
                return
            self.given = part.arrays, part.parameters
        if not part.final:
            return
        if self.given is None:
            self.fail(InternalError("the model gave no response"))
            return
        arrays, self.parameters = self.given
        self.future.set_result((arrays, timing))


class Group:
    """A lot of requests that came together, from `number` on; each has one response.

    A lot is answered as one. Where its responses cannot be joined, it is when the last is there.
    """

    def __init__(self, lot: Lot, number: int) -> None:
        self.lot = lot
        self.number = number
        self.count = lot.count
        self._given: dict[int, Part] = {}

    def is_all(self, count: int) -> bool:
        """Return whether so many responses that come at once are all that it waits for."""
        return count == self.count and not self._given

    def take(self, number: int, part: Part, timing: Timing) -> None:
        """Take one response, or the end of one."""
        before = self._given.get(number)
        if before is None or part.error is not None:
            self._given[number] = before = part
        before.final = part.final
        if len(self._given) == self.count and all(each.final for each in self._given.values()):
            for _, each in sorted(self._given.items()):
                self._settle(each, timing)

    def _settle(self, part: Part, timing: Timing) -> None:
        single = self.lot.cut(1) if self.lot.count > 1 else self.lot
        if part.error is not None:
            single.fail(part.error)
        elif part.arrays is None:
            single.fail(InternalError("the model gave no response"))
        else:
            single.answer(part.arrays, timing)

    def fail(self, error: HeadraceError) -> None:
        """End it with an error."""
        self.lot.fail(error)


@dataclass(slots=True)
class Batch:
    """Requests `first` to `first + count` that run together, `left` of them without an answer.
    `region` of the memory is theirs as long. They begin, at `began_ns`, when those before are done.
    """

    number: int
    first: int
    count: int
    left: int
    region: int
    rows: int
    timing: Timing
    began_ns: int
    lots: list[Lot]

    def begin(self, now_ns: int) -> None:
        """The one before is done: it waited until now."""
        self.timing.queue_ns += now_ns - self.began_ns
        self.began_ns = now_ns
