"""The monitor as a role of control: one child process, one request at a time, days that have
closed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import msgspec

from headrace.errors import (
    HeadraceError,
    InternalError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from monitor.log import log_dates

_LOG = logging.getLogger("headrace")

_CHECK_INTERVAL_S = 5.0
_RUN_TIMEOUT_S = 600.0
_WAITING_MAX = 16
_REPLY_BYTES_MAX = 64 * 1024 * 1024
_ERRORS = {kind.code: kind for kind in HeadraceError.__subclasses__()}

Plan = dict[str, Any]


class MonitorRole:
    """Runs the monitor for a model on demand, and by itself for every model of the plan whenever a
    day of event time has closed, that is, when its log has begun a later one.
    """

    def __init__(self, data_dir: Path, plan: Callable[[], Plan]) -> None:
        self._data_dir = data_dir
        self._plan = plan
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._done: dict[str, tuple[str, date]] = {}  # model → (version, last day) of the last run
        self._runs = 0
        self._failures = 0

    def status(self) -> dict[str, Any]:
        """Return what was run and how far, for health."""
        through = {model: day.isoformat() for model, (_, day) in self._done.items()}
        return {"runs": self._runs, "failures": self._failures, "through": through}

    async def run(self, model: str, through: date) -> dict[str, Any]:
        """Run for one model and return the job's result.

        Raises NotFoundError for a model under no plan, what the job raises, and
        ResourceExhaustedError when too many runs wait.
        """
        version = live_version(self._plan(), model)
        if version is None:
            raise NotFoundError(f"model {model!r} is under no release plan")
        if self._waiting >= _WAITING_MAX:
            raise ResourceExhaustedError("too many monitor runs wait", mend="ask again later")
        self._waiting += 1
        try:
            async with self._turn:
                reply = await self._ask(
                    {"model": model, "version": version, "through": through.isoformat()}
                )
        finally:
            self._waiting -= 1
        if reply.get("error") is not None:
            self._failures += 1
            raise _ERRORS.get(reply["code"], InternalError)(reply["error"])
        self._runs += 1
        self._done[model] = (version, through)
        result: dict[str, Any] = reply["result"]
        return result

    async def follow(self) -> None:
        """Run for days as they close, until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_INTERVAL_S)
            for model in list(self._plan()["models"]):
                await self._follow_one(model)

    async def stop(self) -> None:
        """End the child."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _follow_one(self, model: str) -> None:
        dates = await asyncio.to_thread(log_dates, self._data_dir / "log", model)
        version = live_version(self._plan(), model)
        if len(dates) < 2 or version is None:
            return
        through = dates[-1] - timedelta(days=1)
        if self._done.get(model) == (version, through):
            return
        try:
            await self.run(model, through)
        except HeadraceError as error:
            _LOG.warning("monitor of %s through %s: %s", model, through, error)
            self._done[model] = (version, through)  # the next day, or a request, tries again

    async def _ask(self, request: dict[str, str]) -> dict[str, Any]:
        process = await self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_RUN_TIMEOUT_S):
                process.stdin.write(msgspec.json.encode(request) + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
            if not line:
                raise UnavailableError("the monitor's process died", mend="ask again")
            reply: dict[str, Any] = msgspec.json.decode(line)
        except BaseException as error:
            # A reply that is still to come would answer the next request: never reuse the process.
            await self.stop()
            if isinstance(error, TimeoutError):
                raise UnavailableError(f"no result within {_RUN_TIMEOUT_S:g} s") from None
            if isinstance(error, ConnectionError):
                raise UnavailableError("the monitor's process died", mend="ask again") from None
            raise
        return reply

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "server.control.monitor_run", str(self._data_dir)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_REPLY_BYTES_MAX,
            )
        return self._process


def live_version(plan: Plan, model: str) -> str | None:
    """Return the digest of a model's live arm; None when it is under no plan."""
    arms = plan["models"].get(model, {}).get("arms", [])
    return next((str(arm["version"]) for arm in arms if arm["role"] == "live"), None)
