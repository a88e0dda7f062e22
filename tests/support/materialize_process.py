"""A materialize of `tests.support.clicks` as a process of its own: to be killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from features.materialize import Materializer
from features.online.store import OnlineStore
from tests.support.clicks import NOW_US, definitions


async def main(url: str, project: Path) -> None:
    materializer = Materializer(OnlineStore(url), definitions(), project)
    for name in materializer.sources:
        await materializer.run(name, NOW_US)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
