"""An ingester of the small world as a process of its own: to be killed. Arguments: URL, epoch."""

from __future__ import annotations

import asyncio
import sys

from features.ingest.ingester import Ingester
from features.online.store import OnlineStore
from tests.support.rides import DEFINITIONS, SCHEMA_IDS


async def main(url: str, epoch: int) -> None:
    await Ingester(DEFINITIONS, SCHEMA_IDS, OnlineStore(url), epoch).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
