"""The supervisor: starts children in groups, keeps them running, gives them plans, ends them in
order. What the children are is `stack`'s business.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from pathlib import Path
from types import TracebackType
from typing import Any

from headrace.errors import UnavailableError
from server.processes.child import Child, ChildSpec, how, line_of
from server.processes.layout import write_children
from server.processes.restarts import RestartPolicy, Restarts

_LOG = logging.getLogger("headrace")

Plan = dict[str, Any]


class StopRequested(Exception):  # noqa: N818 - a request, not an error
    """SIGTERM or SIGINT came while children were starting."""


class Supervisor:
    """Use as `async with`: on the way out all children are ended, the last group first.

    SIGTERM and SIGINT ask for the end; a second one ends everything at once. SIGHUP asks for a
    reload, which is its user's business (`wait`), unless it says that the terminal is gone: then it
    asks for the end, or under nohup for nothing.
    """

    def __init__(
        self, children_file: Path, *, drain_s: float, policy: RestartPolicy | None = None
    ) -> None:
        self.plan: Plan | None = None
        self._children_file = children_file
        self._drain_s = drain_s
        self._policy = policy or RestartPolicy()
        self._groups: list[list[str]] = []
        self._children: list[Child] = []  # all that run: two of a role while one replaces the other
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._stop = asyncio.Event()
        self._hangup = asyncio.Event()
        self._has_terminal = _terminal_is_open()
        self._ends_with_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        self._error: UnavailableError | None = None

    async def __aenter__(self) -> Supervisor:
        """Listen for signals."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every child: keepers first, so that none is started again."""
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)
        for roles in reversed(self._groups):
            await self._end([child for child in self._children if child.spec.role in roles])
        self._children_file.unlink(missing_ok=True)

    async def start(self, specs: list[ChildSpec]) -> list[Child]:
        """Start a group and wait until all of it is ready; from then on it is kept running.

        A child that fails on its first start is not tried again: a wrong setting does not mend
        itself. Raises UnavailableError then, and StopRequested on a signal.
        """
        self._groups.append([spec.role for spec in specs])
        children = await self._launch_all(specs)
        for child in children:
            self._begin_to_keep(child)
        return children

    async def replace(self, spec: ChildSpec) -> None:
        """Start a new child for the role of `spec`; when it is ready, end the one that was there.

        Raises UnavailableError when the new one does not start, and StopRequested on a signal; the
        old one then runs on.
        """
        (new,) = await self._launch_all([spec])
        await self._stop_keeping(spec.role)
        self._begin_to_keep(new)
        await self._end([c for c in self._children if c.spec.role == spec.role and c is not new])
        self._record()

    async def end(self, role: str) -> None:
        """End a role for good."""
        await self._stop_keeping(role)
        await self._end([child for child in self._children if child.spec.role == role])
        self._record()

    async def wait(self) -> bool:
        """Wait for a signal: True for a reload, False for the end.

        Raises UnavailableError when a child is in a crash loop.
        """
        waits = [asyncio.create_task(event.wait()) for event in (self._stop, self._hangup)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self._error is not None:
            raise self._error
        self._hangup.clear()
        return not self._stop.is_set()

    def request_reload(self) -> None:
        """Ask for what SIGHUP asks for."""
        self._hangup.set()

    def request_end(self) -> None:
        """Ask for what SIGTERM asks for."""
        self._stop.set()

    def taking(self) -> list[Child]:
        """Return the children that take lines on stdin; not all of them need be ready."""
        return [child for child in self._children if child.spec.takes_plans]

    def publish(self, plan: Plan) -> None:
        """Give a newer plan to every child that takes plans; an older one is ignored."""
        if self.plan is not None and plan["plan"] <= self.plan["plan"]:
            return
        self.plan = plan
        for child in self._children:
            _send_plan(child, plan)

    async def _launch_all(self, specs: list[ChildSpec]) -> list[Child]:
        """Launch at the same time; the first failure, or a signal, calls the others off."""
        launches = [asyncio.create_task(self._launch(spec)) for spec in specs]
        stop = asyncio.create_task(self._stop.wait())
        pending: set[asyncio.Task[Any]] = {*launches, stop}
        failed = False
        while not (failed or stop.done() or pending == {stop}):
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            failed = any(task.exception() is not None for task in done)
        stopped = stop.done()
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for launch in launches:
            if not launch.cancelled() and (error := launch.exception()) is not None:
                raise error
        if stopped:
            raise self._error or StopRequested
        return [launch.result() for launch in launches]

    async def _launch(self, spec: ChildSpec) -> Child:
        child = await Child.start(spec, self.plan)
        self._children.append(child)
        self._record()
        if self.plan is not None:
            # A newer one may have come while the process was made, or it was too long for argv.
            _send_plan(child, self.plan)
        try:
            await child.wait_ready()
        except UnavailableError:
            child.signal(signal.SIGKILL)
            await child.wait()
            self._forget(child)
            raise
        _LOG.info("%s is ready (pid %d)", spec.role, child.pid)
        return child

    def _begin_to_keep(self, child: Child) -> None:
        role = child.spec.role
        self._keepers[role] = asyncio.create_task(self._keep(child), name=f"keep {role}")

    async def _stop_keeping(self, role: str) -> None:
        keeper = self._keepers.pop(role, None)
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def _keep(self, child: Child | None) -> None:
        """Start a child again whenever it dies; give up on a crash loop."""
        assert child is not None
        spec = child.spec
        loop = asyncio.get_running_loop()
        restarts = Restarts(self._policy)
        ready_at = loop.time()
        while True:
            ready_s = 0.0
            try:
                if child is None:
                    child = await self._launch(spec)
                    ready_at = loop.time()
                reason = f"{spec.role} ended: {how(await child.wait())}"
                self._forget(child)
                ready_s = loop.time() - ready_at
            except UnavailableError as error:
                reason = error.message
            child = None
            wait_s = restarts.delay_s(ready_s, random.random())
            if wait_s is None:
                self._error = UnavailableError(
                    f"{spec.role} died {restarts.failures} times in a row, giving up ({reason})",
                    mend="its own lines above say why",
                )
                self._stop.set()
                return
            _LOG.warning("%s; starting it again in %.1f s", reason, wait_s)
            await asyncio.sleep(wait_s)

    async def _end(self, children: list[Child]) -> None:
        """End these at the same time."""
        in_time = await asyncio.gather(*(child.stop(self._drain_s) for child in children))
        for child, ended in zip(children, in_time, strict=True):
            if not ended:
                role = child.spec.role
                _LOG.error("%s did not end within %g s and was killed", role, self._drain_s)
            self._forget(child)

    def _forget(self, child: Child) -> None:
        if child in self._children:
            self._children.remove(child)

    def _record(self) -> None:
        records = [child.record for child in self._children]
        write_children(self._children_file, [record for record in records if record is not None])

    def _on_hangup(self) -> None:
        lost = self._has_terminal and not _terminal_is_open()
        self._has_terminal = self._has_terminal and not lost
        if not lost:
            self._hangup.set()
        elif self._ends_with_terminal:
            self._on_signal(signal.SIGHUP)
        else:
            _LOG.info("the terminal is gone, and it was told to go on without")

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            _LOG.warning("%s again: ending everything at once", number.name)
            for child in self._children:
                child.signal(signal.SIGKILL)
            return
        _LOG.info("%s: draining", number.name)
        self._stop.set()


def _terminal_is_open() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _send_plan(child: Child, plan: Plan) -> None:
    if child.spec.takes_plans:
        child.send_line(line_of({"plan": plan}))
