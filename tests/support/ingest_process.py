"""An ingester of the small world as a process of its own: to be killed.

Arguments: URL, epoch, and the root of a history, where it has to archive.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from features.ingest.archiver import Archiver
from features.ingest.ingester import Ingester
from features.offline import archive as archive_module
from features.offline.archive import Archive
from features.online.store import OnlineStore
from tests.support.rides import DEFINITIONS, SCHEMA_IDS

# So that kills meet every step often.
ARCHIVE_INTERVAL_S = 0.02


async def main(url: str, epoch: int, root: str | None) -> None:
    store = OnlineStore(url)
    if root is None:
        await Ingester(DEFINITIONS, SCHEMA_IDS, store, epoch).run()
        return
    archive_module.MERGED_AT = 4
    archive = Archive(Path(root))
    async with asyncio.TaskGroup() as group:
        group.create_task(Ingester(DEFINITIONS, SCHEMA_IDS, store, epoch, archive=archive).run())
        group.create_task(Archiver(store, archive, epoch, interval_s=ARCHIVE_INTERVAL_S).run())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None))
