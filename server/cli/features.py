"""`headrace features …`: definitions as control holds them, and feature rows as a model would get
them.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.errors import (
    STATUS,
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from server.cli import offline
from server.cli.common import (
    By,
    ConfigOption,
    ControlUrl,
    DataDir,
    actor,
    client,
    make_app,
    print_table,
    say,
    settings,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message

app = make_app("Feature definitions and feature values.")
offline.register(app)

_METHOD = "/headrace.v1.Features/GetFeatures"
_TIMEOUT_S = 10.0
_BACKFILL_POLL_S = 0.5
_STATUS = ("present", "null", "not found", "expired", "unavailable")
_BY_GRPC = {STATUS[kind.code].grpc: kind for kind in HeadraceError.__subclasses__()}

Name = Annotated[str, typer.Argument(help="A view or a service")]


@app.command(epilog="Example: headrace features apply examples/flights/definitions.py")
def apply(
    file: Annotated[Path, typer.Argument(help="The definitions: one Python file")],
    by: By = None,
    control_url: ControlUrl = None,
    config: ConfigOption = None,
) -> None:
    """Apply a definitions file.

    Control checks it, gives schema ids and starts the ingester.
    """
    try:
        source = file.read_bytes()
    except OSError as error:
        raise NotFoundError(f"cannot read {file}", got=error.strerror) from None
    applied = client(config, control_url).apply_definitions(source, actor(by))
    _list(applied)
    say(f"applied {applied['digest']}")
    for name in applied["backfill"]:
        say(f"view {name} is not served yet: headrace features backfill {name}")


@app.command(epilog="Example: headrace features backfill spending")
def backfill(
    views: Annotated[
        list[str] | None, typer.Argument(help="The views [all that wait for their history]")
    ] = None,
    empty: Annotated[
        bool, typer.Option("--empty", help="Serve them without it: what came before is left out")
    ] = False,
    control_url: ControlUrl = None,
    config: ConfigOption = None,
) -> None:
    """Fill views with what was pushed before they were applied.

    The stream goes on beside it. Ends when they are served; if it is ended before, control goes on.
    """
    control = client(config, control_url)
    wanted = set(views or control.backfills())
    left = wanted & control.backfill(views or [], empty=empty).keys()
    shown = ""
    while left:
        time.sleep(_BACKFILL_POLL_S)
        found = control.backfills()
        left &= found.keys()
        done = ", ".join(
            f"{name}: {found[name]['appended']} loaded, up to {found[name]['sequence']} of "
            f"{found[name]['cut']} pushed"
            for name in sorted(left)
        )
        if done != shown and left:
            say(done)
        shown = done
    say(f"served: {', '.join(sorted(wanted))}" if wanted else "no view waits for its history")


@app.command("list", epilog="Example: headrace features list")
def list_(control_url: ControlUrl = None, config: ConfigOption = None) -> None:
    """List views and services."""
    _list(_definitions(config, control_url))


@app.command(epilog="Example: headrace features show flight_delay")
def show(name: Name, control_url: ControlUrl = None, config: ConfigOption = None) -> None:
    """Show a view or a service as JSON."""
    found = _definitions(config, control_url)
    known = {**found["views"], **found["services"]}
    if name not in known:
        raise NotFoundError(f"no view or service {name!r}", expected=", ".join(known) or "none")
    say(json.dumps(known[name], indent=2))


@app.command(
    epilog="Example: headrace features get flight_delay tailnum=N14228 origin=EWR distance=719"
)
def get(
    service: Annotated[str, typer.Argument(help="The feature service")],
    values: Annotated[
        list[str], typer.Argument(help='NAME=VALUE; numbers are numbers, "12" in quotes is text')
    ],
    event_time: Annotated[
        int | None, typer.Option("--event-time", help="µs since 1970; needs the replay scope")
    ] = None,
    server: Annotated[
        str | None, typer.Option("--server", help="gRPC address [HOST:GRPC_PORT of the settings]")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Get one row of a service's features, as a model would get them."""
    from server.pb import headrace_pb2 as pb

    chosen = settings(config, {})
    request = pb.GetFeaturesRequest(service=service, event_time=event_time)
    for text in values:
        _add_column(request, text)
    address = server or f"{chosen.host}:{chosen.grpc_port}"
    reply = _call(address, request, pb.GetFeaturesReply)
    rows = []
    for column, status in zip(reply.features, reply.status, strict=True):
        kind = column.WhichOneof("values")
        value = getattr(column, kind).v[0] if kind is not None and status == 0 else None
        rows.append((column.name, value, _STATUS[status]))
    print_table(("feature", "value", "status"), rows)


@app.command(
    epilog="Example: headrace features snapshot bundle features.snapshot --redis redis://store:6379"
)
def snapshot(
    bundle: Annotated[Path, typer.Argument(help="The folder of a bundle")],
    file: Annotated[Path, typer.Argument(help="The file to write")],
    redis: Annotated[
        str | None, typer.Option("--redis", help="URL of the store [that of `up` in --data-dir]")
    ] = None,
    history: Annotated[
        Path | None, typer.Option("--history", help="Folder of Parquet, in place of a store")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", help="With --history: what was known then [now]")
    ] = None,
    data_dir: DataDir = None,
    config: ConfigOption = None,
) -> None:
    """Write a snapshot of what a model's features are made of.

    It is for `server.embedded`. The bundle's definitions, which are Python, are run.
    """
    from features.snapshots.file import open_snapshot, write_snapshot
    from headrace.times import format_us
    from server.embedded.taken import taken_rows

    chosen = settings(config, {"redis": redis, "data_dir": data_dir})
    write_snapshot(file, taken_rows(bundle, chosen.redis, Path(chosen.data_dir), history, until))
    written = open_snapshot(file)
    print_table(
        ("file", "rows", "as of", "digest"),
        [(file, len(written), format_us(written.taken_at_us), written.digest)],
    )


def _definitions(config: Path | None, control_url: str | None) -> dict[str, Any]:
    found = client(config, control_url).definitions()
    if found is None:
        raise NotFoundError(
            "no definitions were applied", mend="headrace features apply DEFINITIONS.py"
        )
    return found


def _list(found: dict[str, Any]) -> None:
    rows = [
        (view["kind"], name, view["schema_id"], len(view["features"]))
        for name, view in found["views"].items()
    ]
    rows += [
        ("FeatureService", name, service["schema_id"], len(service["columns"]))
        for name, service in found["services"].items()
    ]
    print_table(("kind", "name", "schema id", "features"), rows)


def _add_column(request: Any, text: str) -> None:
    name, equals, given = text.partition("=")
    if not equals or not name:
        raise InvalidArgumentError("bad value", expected="NAME=VALUE", got=repr(text))
    try:
        value = json.loads(given)
    except ValueError:
        value = given
    column = request.inputs.add(name=name)
    if isinstance(value, bool):
        column.bools.v.append(value)
    elif isinstance(value, int):
        column.int64s.v.append(value)
    elif isinstance(value, float):
        column.doubles.v.append(value)
    elif value is None:
        column.strings.v.append("")
        column.nulls.append(0)
    else:
        column.strings.v.append(value if isinstance(value, str) else given)


def _call(address: str, request: Message, reply: Any) -> Any:
    import grpc

    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            _METHOD,
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        try:
            return call(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            code = error.code()
            details = error.details() or code.name
            if code is grpc.StatusCode.UNAVAILABLE and details.startswith("failed to connect"):
                raise UnavailableError(
                    f"no server at {address}", mend="start `headrace up`, or give --server"
                ) from None
            kind = _BY_GRPC.get(code.value[0], InternalError)
            raise kind(details) from None
