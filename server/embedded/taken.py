"""Which rows a bundle's model needs, out of a store or out of history: what a snapshot holds."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from pathlib import Path

from features import definitions_from_source
from features.definitions import StoredView
from features.offline.store import OfflineStore
from features.online.store import OnlineStore
from features.snapshots.file import TakenRows
from features.snapshots.from_history import rows_of_history
from features.snapshots.from_store import rows_of_store
from features.values import time_us
from headrace.errors import FailedPreconditionError, InvalidArgumentError
from server.models.versions import service_of
from server.processes.valkey import store_url
from trainer.bundle import DEFINITIONS, read_bundle

_NS_PER_US = 1000
_NUMBER = re.compile(r"-?[0-9]{1,18}")


def taken_rows(
    bundle: Path, redis: str, data_dir: Path, history: Path | None, until: str | None
) -> TakenRows:
    """Return the rows of a bundle's views: of `history` as it was known `until`, or of a store.

    `redis` is a URL, or the word for the store that `headrace up` has in `data_dir`. Raises
    InvalidArgumentError, NotFoundError, FailedPreconditionError, UnavailableError.
    """
    views = _views(bundle)
    now_us = time.time_ns() // _NS_PER_US
    if history is not None:
        until_us = now_us if until is None else time_us(_number(until), "--until")
        return rows_of_history(OfflineStore(history), views, until_us)
    if until is not None:
        raise InvalidArgumentError("--until is for --history", mend="a store has what is now")
    return asyncio.run(_of_store(store_url(redis, data_dir), views, now_us))


def _views(folder: Path) -> list[StoredView]:
    bundle = read_bundle(folder)
    wanted = bundle.manifest.feature_service
    if wanted is None:
        raise FailedPreconditionError(
            "the bundle's model has no feature service", where=f"bundle {folder.name!r}",
            mend="it needs no snapshot",
        )  # fmt: skip
    definitions = definitions_from_source(bundle.read(DEFINITIONS))
    return [entry.view for entry in service_of(bundle, wanted, definitions).views]


async def _of_store(url: str, views: Sequence[StoredView], now_us: int) -> TakenRows:
    store = OnlineStore(url)
    try:
        return await rows_of_store(store, views, now_us)
    finally:
        await store.close()


def _number(text: str) -> int | str:
    return int(text) if _NUMBER.fullmatch(text) else text
