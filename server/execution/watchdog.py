"""Runs that do not end: a thread tells them to.

A graph may loop for ever, and whoever runs it cannot be interrupted from outside. onnxruntime looks
at `RunOptions.terminate` between two nodes, so a thread that looks at what runs can end it. A run
in the event loop holds up everything else: it gets less time than one in a thread.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from headrace.errors import DeadlineExceededError

RUN_MAX_S = 30.0
_LOOP_MAX_S = 0.5
_LOOK_S = 0.1
_SHRINK_S = 30.0


class RunStoppedError(DeadlineExceededError):
    """A run that the watchdog has ended."""


class Shrinking(Protocol):
    """A session that gives back what its arena does not need, with its next run."""

    shrink_due: bool


class Watchdog:
    """Ends runs that take longer than `run_max_s`, `loop_max_s` in the thread of an event loop.

    A session notes its runs in `runs`: options, (monotonic ns at the start, thread).
    """

    def __init__(self, run_max_s: float = RUN_MAX_S, loop_max_s: float = _LOOP_MAX_S) -> None:
        self.run_max_s = run_max_s
        self.runs: dict[Any, tuple[int, int]] = {}
        self._loop_max_s = loop_max_s
        self._loop_thread = 0
        self._deadlines_ns: dict[int, int] = {}  # by thread
        self._sessions: weakref.WeakSet[Shrinking] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._started = False

    def guard_loop(self) -> None:
        """This thread has the event loop: its runs are short, or leave it."""
        self._loop_thread = threading.get_ident()

    def in_loop(self) -> bool:
        """Return whether this thread has the event loop."""
        return threading.get_ident() == self._loop_thread

    @contextmanager
    def until(self, deadline_ns: int | None) -> Iterator[None]:
        """Runs of this thread meanwhile are ended when nobody waits for them any more."""
        thread = threading.get_ident()
        if deadline_ns is not None:
            self._deadlines_ns[thread] = deadline_ns
        try:
            yield
        finally:
            self._deadlines_ns.pop(thread, None)

    def watch(self, session: Shrinking) -> None:
        """Look after a session as long as it lives."""
        with self._lock:
            self._sessions.add(session)
            if not self._started:
                self._started = True
                threading.Thread(target=self._look_on, name="watchdog", daemon=True).start()

    def look(self, now_ns: int) -> None:
        """End what has run for too long at `now_ns` (monotonic)."""
        for options, (began_ns, thread) in list(self.runs.items()):
            max_s = self._loop_max_s if thread == self._loop_thread else self.run_max_s
            deadline_ns = self._deadlines_ns.get(thread, now_ns)
            if now_ns - began_ns > max_s * 1e9 or now_ns > deadline_ns:
                options.terminate = True

    def stopped(self, run_ns: int) -> RunStoppedError:
        """Return the error of a run that was ended after so long."""
        if not self.in_loop() and run_ns < self.run_max_s * 1e9:
            return RunStoppedError("the caller's deadline passed while the model ran")
        return RunStoppedError(
            "the model was stopped: its run did not end in time",
            expected=f"at most {self.run_max_s:g} s",
        )

    def shrink(self) -> None:
        """Let every session give back what it does not need."""
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.shrink_due = True

    def _look_on(self) -> None:
        shrunk = time.monotonic()
        while True:
            time.sleep(_LOOK_S)
            now = time.monotonic()
            self.look(time.monotonic_ns())
            if now - shrunk >= _SHRINK_S:
                shrunk = now
                self.shrink()


watchdog = Watchdog()  # a process has one, as it has one memory and one loop
