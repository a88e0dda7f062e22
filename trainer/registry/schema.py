"""The registry's tables, and the version of their shape."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    insert,
    select,
)

from headrace.errors import FailedPreconditionError

SCHEMA = 1

metadata = MetaData()

schema = Table("schema", metadata, Column("version", Integer, primary_key=True))

versions = Table(
    "versions",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("registered_us", BigInteger, nullable=False),
    UniqueConstraint("model", "number"),
)

approvals = Table(
    "approvals",
    metadata,
    Column("digest", Text, ForeignKey("versions.digest"), primary_key=True),
    Column("approver", Text, primary_key=True),
    Column("why", Text, nullable=False),
    Column("when_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger),
)

releases = Table(
    "releases",
    metadata,
    Column("environment", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("plan", Integer, nullable=False),
    Column("policy_kind", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("salt", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("when_us", BigInteger, nullable=False),
    Column("back_to", Integer),
    UniqueConstraint("environment", "plan"),
)

release_entries = Table(
    "release_entries",
    metadata,
    Column("environment", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("arm", Text, nullable=False),
    Column("version", Text, ForeignKey("versions.digest"), nullable=False),
    Column("role", Text, nullable=False),
    Column("weight", Float, nullable=False),
)

# Of releases that say what their log is to hold beyond the first release's: others have no row.
release_logs = Table(
    "release_logs",
    metadata,
    Column("environment", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("explain", Float, nullable=False),
)

# One id for each (name, hash) that was ever applied: the uint32 in packed rows and in the log.
schema_ids = Table(
    "schema_ids",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("hash", Text, nullable=False),
    UniqueConstraint("name", "hash"),
)

definitions = Table(
    "definitions",
    metadata,
    Column("sequence", Integer, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("ids", Text, nullable=False),  # JSON: hash → schema id
    Column("by", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("when_us", BigInteger, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("run", Text, nullable=False, unique=True),
    Column("by", Text, nullable=False),
    Column("recorded_us", BigInteger, nullable=False),
    Column("body", Text, nullable=False),  # JSON
)

events = Table(
    "events",
    metadata,
    Column("sequence", Integer, primary_key=True),
    Column("when_us", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("body", Text, nullable=False),  # canonical JSON
    Column("hash", Text, nullable=False),
)

_APPEND_ONLY = (
    "approvals", "definitions", "events", "release_entries", "release_logs", "releases", "runs",
    "schema_ids",
)  # fmt: skip


def prepare(connection: Connection) -> None:
    """Make the tables, or check that they are of this shape.

    Raises FailedPreconditionError when a newer Headrace made them. Runs inside a write transaction,
    so that of two processes starting at once one makes the tables and the other finds them.
    """
    metadata.create_all(connection)
    found = connection.execute(select(schema.c.version)).scalar()
    if found is None:
        connection.execute(insert(schema).values(version=SCHEMA))
    elif found != SCHEMA:
        raise FailedPreconditionError(
            "the registry was made by another Headrace",
            where="registry",
            expected=f"schema version {SCHEMA}",
            got=found,
            mend="run the Headrace that is at least as new as the registry",
        )
    for statement in _guards():  # a table that is new to an older registry has none yet
        connection.exec_driver_sql(statement)


def _guards() -> list[str]:
    """Triggers that keep history as it was, against our own mistakes (the audit is for others')."""
    fixed = "digest, model, number, author, why, registered_us"
    guards = [("versions", "UPDATE", f"UPDATE OF {fixed}"), ("versions", "DELETE", "DELETE")]
    for table in _APPEND_ONLY:
        guards += [(table, "UPDATE", "UPDATE"), (table, "DELETE", "DELETE")]
    return [
        f"CREATE TRIGGER IF NOT EXISTS {table}_no_{kind.lower()} BEFORE {when} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table}: history is append-only'); END"
        for table, kind, when in guards
    ]
