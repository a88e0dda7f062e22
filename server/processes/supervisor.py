"""The supervisor: starts children in groups, keeps them running, gives them plans, ends them in
order. What the children are is `stack`'s business.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import signal
from pathlib import Path
from types import TracebackType
from typing import Any

from headrace.errors import UnavailableError
from server.processes.child import Child, ChildSpec, how
from server.processes.layout import write_children
from server.processes.restarts import RestartPolicy, Restarts

_LOG = logging.getLogger("headrace")

Plan = dict[str, Any]


class StopRequested(Exception):  # noqa: N818 - a request, not an error
    """SIGTERM or SIGINT came while children were starting."""


class Supervisor:
    """Use as `async with`: on the way out all children are ended, the last group first.

    SIGTERM, SIGINT and SIGHUP ask for the end; a second one ends everything at once.
    """

    def __init__(
        self, children_file: Path, *, drain_s: float, policy: RestartPolicy | None = None
    ) -> None:
        self.plan: Plan | None = None
        self._children_file = children_file
        self._drain_s = drain_s
        self._policy = policy or RestartPolicy()
        self._groups: list[list[str]] = []
        self._children: dict[str, Child] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._error: UnavailableError | None = None

    async def __aenter__(self) -> Supervisor:
        """Listen for signals."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # Under nohup SIGHUP is ignored on purpose and stays so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._on_signal, number)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every child: keepers first, so that none is started again."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for roles in reversed(self._groups):
            await asyncio.gather(*(self._end(role) for role in roles))
        self._children_file.unlink(missing_ok=True)

    async def start(self, specs: list[ChildSpec]) -> list[Child]:
        """Start a group and wait until all of it is ready; from then on it is kept running.

        A child that fails on its first start is not tried again: a wrong setting does not mend
        itself. Raises UnavailableError then, and StopRequested on a signal.
        """
        self._groups.append([spec.role for spec in specs])
        children = await self._launch_all(specs)
        for child in children:
            keeper = asyncio.create_task(self._keep(child), name=f"keep {child.spec.role}")
            self._keepers.append(keeper)
        return children

    async def wait(self) -> None:
        """Wait for a signal. Raises UnavailableError when a child is in a crash loop."""
        await self._stop.wait()
        if self._error is not None:
            raise self._error

    def publish(self, plan: Plan) -> None:
        """Give a newer plan to every child that takes plans; an older one is ignored."""
        if self.plan is not None and plan["plan"] <= self.plan["plan"]:
            return
        self.plan = plan
        for child in self._children.values():
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
        self._children[spec.role] = child
        self._record()
        if self.plan is not None:
            # A newer one may have come while the process was made, or it was too long for argv.
            _send_plan(child, self.plan)
        try:
            await child.wait_ready()
        except UnavailableError:
            child.signal(signal.SIGKILL)
            await child.wait()
            raise
        _LOG.info("%s is ready (pid %d)", spec.role, child.pid)
        return child

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

    async def _end(self, role: str) -> None:
        child = self._children.get(role)
        if child is not None and not await child.stop(self._drain_s):
            _LOG.error("%s did not end within %g s and was killed", role, self._drain_s)

    def _record(self) -> None:
        records = [child.record for child in self._children.values()]
        write_children(self._children_file, [record for record in records if record is not None])

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            _LOG.warning("%s again: ending everything at once", number.name)
            for child in self._children.values():
                child.signal(signal.SIGKILL)
            return
        _LOG.info("%s: draining", number.name)
        self._stop.set()


def _send_plan(child: Child, plan: Plan) -> None:
    if child.spec.takes_plans:
        child.send_line(json.dumps({"plan": plan}, separators=(",", ":")).encode())
