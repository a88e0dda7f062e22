"""`headrace features history` and `materialize`: from histories to training sets and the store."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.errors import NotFoundError
from server.cli.common import (
    ConfigOption,
    ControlUrl,
    DataDir,
    client,
    print_table,
    settings,
)
from server.cli.progress import Tell, bar

if TYPE_CHECKING:
    from features.loading import Definitions
    from features.materialize import Materialized

_MIB = 1 << 20

DefinitionsFile = Annotated[
    Path | None,
    typer.Option("--definitions", help="The definitions: one Python file [control's]"),
]
Project = Annotated[
    Path, typer.Option("--project", help="Folder that the locations of sources are below")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        epilog="Example: headrace features history checkout --spine spine.parquet --out set.parquet"
    )(history)
    app.command(epilog="Example: headrace features materialize payments")(materialize)


def history(
    service: Annotated[str, typer.Argument(help="The feature service")],
    spine: Annotated[
        Path, typer.Option("--spine", help="Parquet (file or folder): join keys, event_time, more")
    ],
    out: Annotated[Path, typer.Option("--out", help="The Parquet file to write")],
    definitions: DefinitionsFile = None,
    project: Project = Path(),
    memory_mib: Annotated[
        int, typer.Option("--memory-mib", min=16, help="About what the join may take")
    ] = 1024,
    statuses: Annotated[
        bool, typer.Option("--statuses", help="Say for each feature why it is null")
    ] = False,
    data_dir: DataDir = None,
    control_url: ControlUrl = None,
    config: ConfigOption = None,
) -> None:
    """Join a spine with the features as they were known at its times.

    Every column and row of the spine is kept, in order; it need not fit into memory.
    """
    from features.offline import OfflineStore, write_historical_features

    chosen = settings(config, {"data_dir": data_dir})
    compiled = definitions_of(definitions, control_url, config).service(service)
    store = OfflineStore(Path(chosen.data_dir) / "offline", project)
    with bar() as tell:
        rows = write_historical_features(
            spine, compiled, store, out,
            memory_bytes=memory_mib * _MIB, statuses=statuses, progress=tell,
        )  # fmt: skip
    print_table(("file", "rows", "features"), [(out, rows, len(compiled.columns))])


def materialize(
    sources: Annotated[
        list[str] | None, typer.Argument(help="Sources [all that say where their history lies]")
    ] = None,
    definitions: DefinitionsFile = None,
    project: Project = Path(),
    lookback: Annotated[
        str, typer.Option("--lookback", help="Of tables: how late a row may be committed")
    ] = "1d",
    redis: Annotated[
        str | None, typer.Option("--redis", help="URL of the store [that of `up` in --data-dir]")
    ] = None,
    data_dir: DataDir = None,
    control_url: ControlUrl = None,
    config: ConfigOption = None,
) -> None:
    """Push what has arrived where histories lie, each row once.

    Interrupted, it goes on where it was. The ingester has to run.
    """
    from features.checks import duration_us
    from server.processes.valkey import store_url

    chosen = settings(config, {"redis": redis, "data_dir": data_dir})
    found = definitions_of(definitions, control_url, config)
    url = store_url(chosen.redis, Path(chosen.data_dir))
    lookback_us = duration_us(lookback, "--lookback", "materialize")
    with bar() as tell:
        done = asyncio.run(_materialize(url, found, project, lookback_us, sources, tell))
    print_table(("source", "rows read", "rows pushed"), done)


async def _materialize(
    url: str,
    definitions: Definitions,
    project: Path,
    lookback_us: int,
    names: list[str] | None,
    tell: Tell,
) -> list[Materialized]:
    from features.materialize import Materializer
    from features.online.store import OnlineStore

    store = OnlineStore(url)
    try:
        materializer = Materializer(store, definitions, project, lookback_us=lookback_us)
        return [
            await materializer.run(name, time.time_ns() // 1000, tell)
            for name in names or materializer.sources
        ]
    finally:
        await store.close()


def definitions_of(file: Path | None, control_url: str | None, config: Path | None) -> Definitions:
    """Return the definitions of a file, or those that control holds."""
    from features.loading import definitions_from_source, load_definitions

    if file is not None:
        return load_definitions(file)
    found = client(config, control_url).definitions()
    if found is None:
        raise NotFoundError(
            "no definitions were applied",
            mend="headrace features apply DEFINITIONS.py, or give --definitions",
        )
    return definitions_from_source(found["source"].encode())
