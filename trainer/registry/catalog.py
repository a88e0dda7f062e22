"""Feature definitions as they were applied, the schema ids that they got, and pipeline runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, func, insert, select

from headrace.digest import canonical_json
from headrace.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from trainer.registry import audit, schema
from trainer.registry.records import Run

SCHEMA_ID_MAX = 2**32 - 1  # packed rows hold it as a uint32
RUN_BYTES_MAX = 8 << 20


def check_views(views: Sequence[tuple[str, str]]) -> None:
    """Raise InvalidArgumentError unless every (name, hash) can have an id of its own."""
    hashes = [view_hash for _, view_hash in views]
    if not views or not all(name and view_hash for name, view_hash in views):
        raise InvalidArgumentError(
            "no views", where="definitions", expected="at least one view with a name and a hash"
        )
    if len(set(hashes)) != len(hashes):
        raise InvalidArgumentError("two views have the same hash", where="definitions", got=hashes)


def apply(
    connection: Connection,
    digest: str,
    views: Sequence[tuple[str, str]],
    actor: str,
    why: str,
    now_us: int,
) -> dict[str, int]:
    """Make `digest` the newest definitions; return the schema id of each view's hash.

    An id stays with its (name, hash) for good. What is the newest already is not applied again.
    """
    ids = {view_hash: _schema_id(connection, name, view_hash) for name, view_hash in views}
    text = canonical_json(ids).decode()
    newest = row(connection)
    if newest is not None and (newest.digest, newest.ids) == (digest, text):
        return ids
    sequence = 1 if newest is None else newest.sequence + 1
    values = (sequence, digest, text, actor, why, now_us)
    connection.execute(insert(schema.definitions).values(values))
    body = {"digest": digest, "ids": ids, "names": dict(views)}
    audit.append(connection, now_us, actor, "apply", f"definitions/{sequence}", why, body)
    return ids


def row(connection: Connection) -> Any:
    """Return the row of the newest definitions, None before the first."""
    table = schema.definitions
    return connection.execute(
        select(table).order_by(table.c.sequence.desc()).limit(1)
    ).one_or_none()


def record_run(connection: Connection, run: dict[str, Any], actor: str, now_us: int) -> Run:
    """Keep what a run says of itself. The same again changes nothing.

    Raises InvalidArgumentError without an id, AlreadyExistsError for other content under the id.
    """
    name = run.get("run")
    if not isinstance(name, str) or not name.strip():
        raise InvalidArgumentError("the run has no id", where="run", expected="a text as 'run'")
    text = canonical_json(run)
    if len(text) > RUN_BYTES_MAX:
        raise ResourceExhaustedError(
            "the record is too large",
            where=f"run {name[:80]!r}",
            expected=f"at most {RUN_BYTES_MAX} bytes",
            got=len(text),
        )
    table = schema.runs
    known = connection.execute(select(table.c.body).where(table.c.run == name)).scalar()
    if known is None:
        connection.execute(
            insert(table).values(run=name, by=actor, recorded_us=now_us, body=text.decode())
        )
        audit.append(connection, now_us, actor, "run", f"run/{name}", "recorded", run)
    elif known.encode() != text:
        raise AlreadyExistsError(
            "it was recorded with other content",
            where=f"run {name[:80]!r}",
            mend="give each run an id of its own",
        )
    return find_run(connection, name)


def find_run(connection: Connection, name: str) -> Run:
    """Return a run. Raises NotFoundError."""
    found = connection.execute(select(schema.runs).where(schema.runs.c.run == name)).one_or_none()
    if found is None:
        raise NotFoundError(f"no run {name[:80]!r}", where="registry")
    return _run(found)


def runs(connection: Connection, limit: int) -> list[Run]:
    """Return the newest `limit` runs, the newest first."""
    query = select(schema.runs).order_by(schema.runs.c.number.desc()).limit(limit)
    return [_run(found) for found in connection.execute(query)]


def _run(found: Any) -> Run:
    return Run(found.run, found.by, found.recorded_us, msgspec.json.decode(found.body))


def _schema_id(connection: Connection, name: str, view_hash: str) -> int:
    table = schema.schema_ids
    query = select(table.c.id).where(table.c.name == name, table.c.hash == view_hash)
    known: int | None = connection.execute(query).scalar()
    if known is not None:
        return known
    highest: int = connection.execute(select(func.coalesce(func.max(table.c.id), 0))).scalar_one()
    if highest >= SCHEMA_ID_MAX:
        raise ResourceExhaustedError("no schema id is left", where="definitions")
    connection.execute(insert(table).values(id=highest + 1, name=name, hash=view_hash))
    return highest + 1
