"""SQLite as the registry needs it: WAL, immediate write transactions, bounded waits."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

from headrace.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from trainer.registry import schema

BUSY_TIMEOUT_MS = 5_000
_WAL_PAUSE_MS = 10
_IMMEDIATE = "headrace_immediate"


class Database:
    """One SQLite file. Threads may share it; each transaction has a connection of its own.

    A read that turns into a write fails at once under WAL when another process wrote in between
    (SQLITE_BUSY, whatever the timeout), so writers take the write lock first: BEGIN IMMEDIATE.
    """

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        try:
            with self.write() as connection:
                schema.prepare(connection)
        except DatabaseError as error:
            self._engine.dispose()
            raise FailedPreconditionError(
                "the file is no registry",
                where="registry",
                mend="check its path, or restore it from a backup",
            ) from error
        except BaseException:
            self._engine.dispose()
            raise

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view; nothing that it does is kept."""
        with _unavailable(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: all of it is on disk when this returns, or none. One writer at a time.

        Raises UnavailableError when the lock was not free in time, or the disk is full.
        """
        with (
            _unavailable(),
            self._engine.connect().execution_options(**{_IMMEDIATE: True}) as connection,
            connection.begin(),
        ):
            yield connection


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        raise UnavailableError(
            "the registry's database did not take it",
            where="registry",
            mend="check the free disk space and who holds its lock, then try again",
        ) from error


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    # A database in memory is another one in each thread, so it is none of the registry's.
    file = None if parsed is None or parsed.get_backend_name() != "sqlite" else parsed.database
    if parsed is None or file in (None, "", ":memory:"):
        raise InvalidArgumentError(
            "not a database that the registry can use",
            where="registry",
            expected="sqlite:////absolute/path/registry.db",
            got=repr(url.partition(":")[0]),  # never the whole: it may hold a password
        )
    Path(str(file)).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _configure(connection: Any, _record: Any) -> None:
    # The driver's own BEGIN would be a deferred one, and late: transactions are begun by hand.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    _use_wal(connection)
    for pragma in (
        "synchronous = FULL",  # an approval that was acknowledged outlives a power cut
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _use_wal(connection: Any) -> None:
    """Where several make one registry at once, all but one find it locked, and SQLite does not wait
    for a change of the journal as it does for everything else."""
    for _ in range(BUSY_TIMEOUT_MS // _WAL_PAUSE_MS):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            time.sleep(_WAL_PAUSE_MS / 1000)
        else:
            return
    connection.execute("PRAGMA journal_mode = WAL")


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get(_IMMEDIATE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
