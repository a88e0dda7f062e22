"""The audit: an append-only chain of events, h_i = SHA-256(0x00 ‖ h_{i−1} ‖ canonical(e_i)).

It shows an edit, an insertion, a removal or a reordering. A cut at the end, or a rewrite of the
whole, it shows only against an anchor: a head that was kept elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import msgspec
from sqlalchemy import Connection, insert, select

from headrace.digest import canonical_json
from headrace.errors import FailedPreconditionError, InvalidArgumentError
from trainer.registry import schema
from trainer.registry.records import Event, Head

ACTOR_CHARACTERS_MAX = 200
WHY_CHARACTERS_MAX = 2_000
GENESIS = Head(0, "0" * 64)


def check_said(actor: str, why: str) -> None:
    """Raise InvalidArgumentError unless it is said who does it and why."""
    for name, text, most in (("by", actor, ACTOR_CHARACTERS_MAX), ("why", why, WHY_CHARACTERS_MAX)):
        if not text.strip() or len(text) > most:
            raise InvalidArgumentError(
                f"{name!r} is needed",
                where="registry",
                expected=f"1 to {most} characters",
                got=len(text),
                mend="say who does it and why: both are recorded",
            )


def append(
    connection: Connection,
    when_us: int,
    actor: str,
    action: str,
    subject: str,
    why: str,
    body: dict[str, Any],
) -> None:
    """Add one event to the chain, in the transaction that makes the change it tells about."""
    last = head(connection)
    text = canonical_json(body).decode()
    sequence = last.sequence + 1
    row = (sequence, when_us, actor, action, subject, why, text)
    connection.execute(insert(schema.events).values((*row, _chained(last.hash, row))))


def head(connection: Connection) -> Head:
    """Return the end of the chain."""
    table = schema.events
    row = connection.execute(
        select(table.c.sequence, table.c.hash).order_by(table.c.sequence.desc()).limit(1)
    ).one_or_none()
    return GENESIS if row is None else Head(*row)


def read(connection: Connection, after: int, limit: int | None) -> Iterator[Event]:
    """Yield the events behind sequence `after`, in order."""
    table = schema.events
    query = select(table).where(table.c.sequence > after).order_by(table.c.sequence)
    for row in connection.execute(query.limit(limit)):
        yield Event(
            sequence=row.sequence,
            when_us=row.when_us,
            actor=row.actor,
            action=row.action,
            subject=row.subject,
            why=row.why,
            body=msgspec.json.decode(row.body),
            hash=row.hash,
        )


def verify_chain(connection: Connection, anchor: Head | None = None) -> Head:
    """Return the head after recomputing every link.

    Raises FailedPreconditionError that names the first event which is not what was written, and
    when the `anchor` is not in the chain: then its end was cut off, or all of it written anew.
    """
    last, anchored = GENESIS, anchor is None or anchor == GENESIS
    for row in connection.execute(select(schema.events).order_by(schema.events.c.sequence)):
        *facts, chained = row
        if facts[0] != last.sequence + 1:
            raise _broken(f"event {last.sequence + 1} is missing")
        if chained != _chained(last.hash, tuple(facts)):
            raise _broken(f"event {facts[0]} is not what was written")
        last = Head(facts[0], chained)
        anchored = anchored or last == anchor
    if not anchored and anchor is not None:
        raise _broken(f"event {anchor.sequence} of the anchor is not in the chain")
    return last


def _chained(previous: str, row: tuple[Any, ...]) -> str:
    return hashlib.sha256(b"\0" + bytes.fromhex(previous) + canonical_json(row)).hexdigest()


def _broken(what: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        what, where="audit", mend="restore the registry from a backup and find out who wrote to it"
    )
