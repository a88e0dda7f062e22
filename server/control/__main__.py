"""Control's process: `python -m server.control '{"host": …, "port": …, "data_dir": …, "redis":
…}'`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path

import msgspec
import uvloop

from headrace.errors import HeadraceError
from server import logs
from server.processes.child import STORE_VARIABLE
from server.processes.layout import DataDir, Lock

_LOG = logging.getLogger("headrace")


class ControlConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JSON in argv[1]; the store's URL may come by the environment instead."""

    host: str
    port: int
    data_dir: str
    redis: str | None = None
    ingester: bool = True
    drain_s: float = 10.0


def run(config: ControlConfig) -> None:
    """Run until SIGTERM. Raises AlreadyExistsError when another control holds the data folder."""
    logs.setup("control")
    data = DataDir(Path(config.data_dir)).create()
    # The lease on the registry: one control a data folder, let go by the kernel when it dies.
    with Lock(data.run / "control.lock", "a headrace control"):
        # uvloop: predictions wait for the ingester, which runs in this loop.
        uvloop.run(_serve(config, data))


async def _serve(config: ControlConfig, data: DataDir) -> None:
    from server.control.app import Control

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    redis = config.redis or os.environ.get(STORE_VARIABLE)
    control = Control(data.root, redis, ingester=config.ingester)
    port = await control.start(config.host, config.port)
    ready = {"event": "ready", "control": f"http://{config.host}:{port}"}
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    await stop.wait()
    await control.stop(config.drain_s)


def main() -> int:
    """Run as a child of the supervisor."""
    try:
        run(msgspec.json.decode(sys.argv[1], type=ControlConfig))
    except HeadraceError as error:
        _LOG.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
