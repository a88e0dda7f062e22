"""The ingester as a role: started for the definitions that were applied last, restarted for new
ones.

It runs inside control (`headrace up`), or on its own (`headrace ingest`), which follows control's
definitions. Each start draws a higher epoch from the store; the store refuses writes of an older
one, so that two ingesters never both write, whatever happens to their processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import FailedPreconditionError, HeadraceError, InternalError, UnavailableError

if TYPE_CHECKING:
    from features.ingest.archiver import Archiver
    from features.ingest.ingester import Ingester
    from features.loading import Definitions

_LOG = logging.getLogger("headrace")

_EPOCH_KEY = "hr:epoch"
_RETRY_CAP_S = 5.0
_TAKE_OVER_S = 5.0
_FOLLOW_INTERVAL_S = 2.0


class IngestRole:
    """At most one ingester in this process."""

    def __init__(self, redis_url: str, history: Path) -> None:
        """`history`: the root of the offline store, to which what was applied is archived."""
        self._redis_url = redis_url
        self._history = history
        self._archiver: Archiver | None = None
        self._archive_error: HeadraceError | None = None
        self._task: asyncio.Task[None] | None = None
        self._ingester: Ingester | None = None
        self._state = "waits for definitions"
        self._taken_over = asyncio.Event()
        self.error: HeadraceError | None = None

    def status(self) -> dict[str, Any]:
        """Return the state, the last error, the counters and the checkpoint, for health."""
        found: dict[str, Any] = {"state": self._state}
        if self.error is not None:
            found["error"] = self.error.message
        if self._ingester is not None:
            found["counters"] = asdict(self._ingester.counters)
            checkpoint = self._ingester.checkpoint
            found["offset"] = None if checkpoint is None else str(checkpoint.offset)
        if self._archiver is not None:
            found["archive"] = asdict(self._archiver.counters)
            if self._archive_error is not None:
                found["archive"]["error"] = self._archive_error.message
        return found

    async def apply(self, definitions: Definitions, schema_ids: dict[str, int]) -> None:
        """Run the ingester for these definitions from now on; `schema_ids` by stored view's
        name."""
        await self.stop()
        self.error = None
        self._state = "starting"
        self._taken_over.clear()
        self._task = asyncio.create_task(self._run(definitions, schema_ids), name="ingester")

    async def taken_over(self) -> None:
        """Wait a little for it to take over, so that who applied can ask for features at once."""
        with contextlib.suppress(TimeoutError):  # the store is gone: it goes on trying
            async with asyncio.timeout(_TAKE_OVER_S):
                await self._taken_over.wait()

    def fills(self) -> dict[str, dict[str, Any]]:
        """Return the views that wait for their history, or are being filled, by name.

        Each: state (waits or runs), cut (the sequence from which on it follows the stream), and how
        far it is: appended (rows that were loaded) and sequence.
        """
        if self._ingester is None:
            return {}
        return {
            name: {"state": mark.state, "cut": mark.cut, **mark.place._asdict()}
            for name, mark in self._ingester.fills.items()
        }

    def fill(self, views: Sequence[str], *, empty: bool) -> None:
        """Fill views from history, none named: all that wait; `empty`: serve them without it.

        Raises FailedPreconditionError for a view that does not wait.
        """
        if self._ingester is not None:
            waiting = [n for n, mark in self._ingester.fills.items() if mark.state == "waits"]
            self._ingester.fill(views or waiting, empty=empty)

    async def stop(self) -> None:
        """End the ingester; safe at any point, it writes in whole steps."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._state = "stopped"

    async def _run(self, definitions: Definitions, schema_ids: dict[str, int]) -> None:
        from features.ingest.archiver import Archiver
        from features.ingest.ingester import Ingester
        from features.offline.archive import Archive
        from features.online.store import OnlineStore

        store = OnlineStore(self._redis_url)
        archive = Archive(self._history)
        retry_s = 0.2
        try:
            while True:
                try:
                    epoch = int(await store.execute("INCR", _EPOCH_KEY))
                    self._ingester = Ingester(
                        definitions, schema_ids, store, epoch, archive=archive
                    )
                    self._archiver = Archiver(store, archive, epoch)
                    self._state = "running"
                    _LOG.info("ingester runs, epoch %d", epoch)
                    archiving = asyncio.create_task(self._archive(self._archiver))
                    try:
                        await self._ingester.run(self._taken_over)
                    finally:
                        archiving.cancel()
                        await asyncio.wait([archiving])
                except FailedPreconditionError as error:
                    # Superseded, or the store was emptied: going on would write over the one's
                    # rows, or serve the other's gaps as facts.
                    self._fail(error)
                    return
                except UnavailableError as error:
                    self._state, self.error = "waits for the store", error
                except HeadraceError as error:
                    self._fail(error)
                except Exception:  # noqa: BLE001 - the task boundary: control serves on
                    _LOG.exception("the ingester failed; it starts again")
                    self._state = "failed, starts again"
                await asyncio.sleep(retry_s * random.uniform(0.5, 1.5))
                retry_s = min(retry_s * 2, _RETRY_CAP_S)
        finally:
            await store.close()

    async def _archive(self, archiver: Archiver) -> None:
        """Archive beside the ingester, which goes on while the log has room for what is not."""
        while True:
            try:
                self._archive_error = None
                await archiver.run()
            except FailedPreconditionError as error:
                self._archive_error = error
                _LOG.error("archive: %s", error)
                return
            except HeadraceError as error:
                self._archive_error = error
                _LOG.error("archive: %s", error)
            except Exception as error:  # noqa: BLE001 - a task boundary, as in `_run`
                self._archive_error = InternalError(f"the archive failed: {type(error).__name__}")
                _LOG.exception("the archive failed; it starts again")
            await asyncio.sleep(_RETRY_CAP_S)

    def _fail(self, error: HeadraceError) -> None:
        self._state, self.error = "failed", error
        _LOG.error("ingester: %s", error)


def stored_schema_ids(definitions: Definitions, ids: dict[str, int]) -> dict[str, int]:
    """Return the schema id of every view that has rows in the store, by name.

    `ids`: the registry's ids by hash.
    """
    return {name: ids[view.hash] for name, view in definitions.stored_views.items()}


def run_alone(redis_url: str, control_url: str, history: Path) -> None:
    """Run the ingester by control's definitions until SIGTERM (`headrace ingest`).

    history: the root of the offline store that it archives to.

    Raises the HeadraceError for which the ingester may not go on.
    """
    from server import logs

    logs.setup("ingester")
    asyncio.run(_follow(redis_url, control_url, history))


async def _follow(redis_url: str, control_url: str, history: Path) -> None:
    from features.loading import definitions_from_source
    from server.control.client import ControlClient

    role = IngestRole(redis_url, history)
    client = ControlClient(control_url, timeout_s=10.0)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    digest = problem = ""
    try:
        while not stop.is_set():
            try:
                found = await asyncio.to_thread(client.definitions)
                if found is not None and found["digest"] != digest:
                    definitions = await asyncio.to_thread(
                        definitions_from_source, found["source"].encode()
                    )
                    await role.apply(definitions, stored_schema_ids(definitions, found["ids"]))
                    digest = found["digest"]
                # Nobody can ask this process for it.
                role.fill([], empty=False)
                problem = ""
            except UnavailableError as error:
                if error.message != problem:
                    _LOG.warning("%s; the last definitions stay", error)
                problem = error.message
            if isinstance(role.error, FailedPreconditionError):
                raise role.error
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FOLLOW_INTERVAL_S):
                    await stop.wait()
    finally:
        await role.stop()
