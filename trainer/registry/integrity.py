"""Whether the tables say what the audit says: a row that was changed behind it shows here."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, select

from headrace.errors import FailedPreconditionError
from trainer.registry import audit, catalog, releases, schema, versions


def compare(connection: Connection) -> None:
    """Raise FailedPreconditionError where a table is not what the chained events add up to."""
    states: dict[str, dict[str, Any]] = {}
    approvals: dict[str, list[dict[str, Any]]] = {}
    released: list[dict[str, Any]] = []
    applied: list[tuple[str, dict[str, int]]] = []
    ids: dict[tuple[str, str], int] = {}
    runs: list[dict[str, Any]] = []
    for event in audit.read(connection, 0, None):
        body = event.body
        if event.action == "register":
            states[body["digest"]] = dict(body)
            approvals[body["digest"]] = []
        elif event.action in ("release", "rollback"):
            released.append(body)
        elif event.action == "apply":
            applied.append((body["digest"], body["ids"]))
            ids |= {(name, found): body["ids"][found] for name, found in body["names"].items()}
        elif event.action == "run":
            runs.append(body)
        else:
            states[body["digest"]]["state"] = body["to"]
            if event.action == "approve":
                fields = ("approver", "why", "when_us", "expires_us")
                approvals[body["digest"]].append({name: body[name] for name in fields})
    expected = sorted(
        ({**row, "approvals": approvals[digest]} for digest, row in states.items()),
        key=lambda row: (row["model"], row["number"]),
    )
    _same("versions", msgspec.to_builtins(versions.everything(connection)), expected)
    found = msgspec.to_builtins(releases.everything(connection))
    released.sort(key=lambda release: (release["environment"], release["plan"]))
    _same("releases", found, released)
    table = schema.definitions
    rows = connection.execute(select(table.c.digest, table.c.ids).order_by(table.c.sequence))
    _same("definitions", [(row.digest, msgspec.json.decode(row.ids)) for row in rows], applied)
    rows = connection.execute(select(schema.schema_ids))
    _same("schema ids", {(row.name, row.hash): row.id for row in rows}, ids)
    kept = [run.body for run in catalog.runs(connection, -1)]
    _same("runs", kept, runs[::-1])


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise FailedPreconditionError(
            f"the {what} are not what the audit says",
            where="registry",
            mend="restore the registry from a backup and find out who wrote to it",
        )
