"""Versions: how one is found, and how it moves through its states."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from headrace.errors import (
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from trainer.registry import audit, schema
from trainer.registry.records import PRODUCTION, Approval, Version
from trainer.registry.states import FIRST, Action, next_state

CHAMPION = "champion"  # the alias of what is live in production
_NUMBER = re.compile(r"v([0-9]{1,9})")
_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{6,64})")


def add(
    connection: Connection, model: str, digest: str, author: str, why: str, now_us: int
) -> Version:
    """Insert a draft and return it; a digest that is there already is returned as it is.

    A digest says the model's name, so one digest belongs to one model only.
    """
    table = schema.versions
    if connection.execute(select(table.c.digest).where(table.c.digest == digest)).first():
        return find(connection, model, digest)
    highest = select(func.coalesce(func.max(table.c.number), 0)).where(table.c.model == model)
    number = connection.execute(highest).scalar_one() + 1
    row = {
        "digest": digest,
        "model": model,
        "number": number,
        "state": FIRST,
        "author": author,
        "why": why,
        "registered_us": now_us,
    }
    connection.execute(insert(table).values(row))
    audit.append(connection, now_us, author, "register", f"{model}/{digest}", why, row)
    return find(connection, model, digest)


def move(
    connection: Connection, version: Version, action: Action, actor: str, why: str, now_us: int
) -> Version:
    """Take `version` one step, recorded. Raises FailedPreconditionError where there is no way."""
    where = place(version)
    state = next_state(version.state, action, where)
    table = schema.versions
    connection.execute(update(table).where(table.c.digest == version.digest).values(state=state))
    body = {"digest": version.digest, "from": version.state, "to": state}
    subject = f"{version.model}/{version.digest}"
    audit.append(connection, now_us, actor, action, subject, why, body)
    return find(connection, version.model, version.digest)


def approve(
    connection: Connection,
    version: Version,
    actor: str,
    why: str,
    expires_us: int | None,
    now_us: int,
) -> Version:
    """Record a second person's word for these bytes, and make the version releasable.

    Raises PermissionDeniedError for the author, InvalidArgumentError for an end that is past.
    """
    where = place(version)
    next_state(version.state, "approve", where)
    if actor == version.author:
        raise PermissionDeniedError(
            "an author cannot approve their own version",
            where=where,
            expected=f"someone other than {version.author}",
            got=actor,
            mend="ask a colleague to approve it",
        )
    if expires_us is not None and expires_us <= now_us:
        raise InvalidArgumentError(
            "the approval would have ended already",
            where=where,
            expected=f"an end after {now_us}",
            got=expires_us,
        )
    approval = {"approver": actor, "why": why, "when_us": now_us, "expires_us": expires_us}
    connection.execute(insert(schema.approvals).values(digest=version.digest, **approval))
    body = {"digest": version.digest, "from": version.state, "to": "approved", **approval}
    connection.execute(
        update(schema.versions)
        .where(schema.versions.c.digest == version.digest)
        .values(state="approved")
    )
    subject = f"{version.model}/{version.digest}"
    audit.append(connection, now_us, actor, "approve", subject, why, body)
    return find(connection, version.model, version.digest)


def is_over(version: Version, now_us: int) -> bool:
    """Return whether an approval of `version` has reached its end."""
    return any(a.expires_us is not None and a.expires_us <= now_us for a in version.approvals)


def due(connection: Connection, now_us: int) -> list[Version]:
    """Return the approved versions whose approval has reached its end."""
    return [
        version
        for version in everything(connection)
        if version.state == "approved" and is_over(version, now_us)
    ]


def find(connection: Connection, model: str, reference: str) -> Version:
    """Return the version that `reference` names.

    A digest, six or more of its digits, `v` and a number, or `champion`. Raises NotFoundError, and
    InvalidArgumentError when several versions begin with these digits.
    """
    table = schema.versions
    query = select(table).where(table.c.model == model)
    if reference == CHAMPION:
        query = query.where(table.c.digest == champion(connection, model))
    elif match := _NUMBER.fullmatch(reference):
        query = query.where(table.c.number == int(match[1]))
    elif match := _PREFIX.fullmatch(reference):
        query = query.where(table.c.digest.startswith(f"sha256:{match[1]}", autoescape=True))
    else:
        raise InvalidArgumentError(
            "not a version",
            where=f"model {model!r}",
            expected="a digest, six or more of its digits, 'v3' or 'champion'",
            got=repr(reference[:80]),
        )
    found = connection.execute(query.limit(2)).all()
    if len(found) > 1:
        raise InvalidArgumentError(
            f"several versions begin with {reference!r}",
            where=f"model {model!r}",
            mend="add digits",
        )
    if not found:
        raise NotFoundError(
            f"no version {reference!r}",
            where=f"model {model!r}",
            mend="`headrace model list` shows what there is",
        )
    return _versions(connection, found)[0]


def listing(connection: Connection, model: str) -> list[Version]:
    """Return all versions of `model`, the oldest first. Raises NotFoundError for none."""
    table = schema.versions
    query = select(table).where(table.c.model == model).order_by(table.c.number)
    found = connection.execute(query).all()
    if not found:
        raise NotFoundError(
            f"no model {model!r}", where="registry", mend="`headrace model list` shows the models"
        )
    return _versions(connection, found)


def everything(connection: Connection) -> list[Version]:
    """Return all versions of all models, by model and number."""
    table = schema.versions
    query = select(table).order_by(table.c.model, table.c.number)
    return _versions(connection, connection.execute(query).all())


def champion(connection: Connection, model: str) -> str | None:
    """Return the digest that is live in production, None before the first release."""
    releases, entries = schema.releases, schema.release_entries
    last = (
        select(func.max(releases.c.sequence))
        .where(releases.c.environment == PRODUCTION, releases.c.model == model)
        .scalar_subquery()
    )
    return connection.execute(
        select(entries.c.version).where(
            entries.c.environment == PRODUCTION,
            entries.c.model == model,
            entries.c.sequence == last,
            entries.c.role == "live",
        )
    ).scalar()


def place(version: Version) -> str:
    """Return how errors name a version."""
    return f"version v{version.number} of {version.model!r}"


def _versions(connection: Connection, rows: Sequence[Any]) -> list[Version]:
    table = schema.approvals
    digests = [row.digest for row in rows]
    approvals: dict[str, list[Approval]] = {digest: [] for digest in digests}
    query = select(table).where(table.c.digest.in_(digests)).order_by(table.c.when_us)
    for row in connection.execute(query):
        approval = Approval(row.approver, row.why, row.when_us, row.expires_us)
        approvals[row.digest].append(approval)
    return [
        Version(
            model=row.model,
            digest=row.digest,
            number=row.number,
            state=row.state,
            author=row.author,
            why=row.why,
            registered_us=row.registered_us,
            approvals=approvals[row.digest],
        )
        for row in rows
    ]
