"""`headrace features history`: training sets out of history."""

from __future__ import annotations

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
from server.cli.progress import bar

if TYPE_CHECKING:
    from features.loading import Definitions

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
