"""What an event loop's thread does, by looking at it from another thread: also while it is blocked.

A look finds the thread in a callback, or waiting. Looks that find the same callback one after
another are one hold: for that long nobody else had a turn.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from types import FrameType
from typing import Any, NamedTuple

INTERVAL_S = 0.002
_STACKS_SHOWN, _HOLDS_SHOWN = 20, 10
_DEPTH_MAX = 40
_STACKS_KEPT = 1000
# Behind the last of these frames is what the loop runs.
_LOOP = (
    ("uvloop", None), ("asyncio.runners", None), ("asyncio.base_events", None),
    ("asyncio.events", "_run"),
)  # fmt: skip
_WAITING = "selectors"

Stack = tuple[str, ...]  # the callback first: module.function:line


class Hold(NamedTuple):
    """One callback, for how long it was seen, and where it was seen last."""

    ns: int
    stack: Stack


class LoopTrace:
    """Counts looks; `interval_ns` apart."""

    def __init__(self, interval_ns: int) -> None:
        self._interval_ns = interval_ns
        self._looks = 0
        self._stacks: Counter[Stack] = Counter()
        self._holds: list[Hold] = []
        self._callback: object = None
        self._since_ns = self._seen_ns = 0
        self._stack: Stack = ()

    def look(self, now_ns: int, callback: object, stack: Stack) -> None:
        """Take one look: the callback that runs (None: none does) and its stack."""
        self._looks += 1
        if callback is not self._callback:
            self._end_hold()
            self._callback, self._since_ns = callback, now_ns
        self._seen_ns, self._stack = now_ns, stack
        if callback is not None and (stack in self._stacks or len(self._stacks) < _STACKS_KEPT):
            self._stacks[stack] += 1

    def result(self) -> dict[str, Any]:
        """Return shares of time by stack, and the longest holds, as JSON values."""
        self._end_hold()
        self._callback = None
        looks = max(self._looks, 1)
        return {
            "looks": self._looks,
            "interval_ms": self._interval_ns / 1e6,
            "busy": sum(self._stacks.values()) / looks,
            "stacks": [
                {"share": count / looks, "stack": list(stack)}
                for stack, count in self._stacks.most_common(_STACKS_SHOWN)
            ],
            "longest": [{"ms": hold.ns / 1e6, "stack": list(hold.stack)} for hold in self._holds],
        }

    def _end_hold(self) -> None:
        if self._callback is not None:
            hold = Hold(self._seen_ns - self._since_ns + self._interval_ns, self._stack)
            self._holds = sorted([*self._holds, hold], reverse=True)[:_HOLDS_SHOWN]


def trace(thread_id: int, seconds: float) -> dict[str, Any]:
    """Look at a thread's event loop for so long, from a thread that may wait."""
    found = LoopTrace(int(INTERVAL_S * 1e9))
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        frames = _frames(sys._current_frames().get(thread_id))  # noqa: SLF001 - of no other name
        found.look(time.monotonic_ns(), frames[0] if frames else None, _stack(frames))
        del frames  # they hold what their functions hold
        time.sleep(INTERVAL_S)
    return found.result()


def _frames(innermost: FrameType | None) -> Sequence[FrameType]:
    """Return the frames of the callback that runs, outermost first; none while the loop waits."""
    frames: list[FrameType] = []
    frame = innermost
    while frame is not None:
        module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        if (module, None) in _LOOP or (module, name) in _LOOP:
            break
        frames.append(frame)
        frame = frame.f_back
    if frame is None or (frames and frames[-1].f_globals.get("__name__") == _WAITING):
        return ()
    return frames[::-1]


def _stack(frames: Sequence[FrameType]) -> Stack:
    return tuple(
        f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_qualname}:{frame.f_lineno}"
        for frame in frames[-_DEPTH_MAX:]
    )
