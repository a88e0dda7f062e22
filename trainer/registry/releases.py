"""Releases: an append-only list per environment and model, and the plan that follows from it."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, and_, func, insert, select

from headrace.digest import digest_json
from headrace.errors import FailedPreconditionError, InvalidArgumentError
from trainer.registry import audit, schema, versions
from trainer.registry.records import Release, ReleaseEntry, Version

# The router's bounds; what is released here must be a plan that it takes (a test holds the two).
ARMS_MAX = 16
WEIGHT_MIN, WEIGHT_MAX = 1e-9, 1e9
NAME_CHARACTERS_MAX = 128
_NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits + "_.-")


def check_entries(entries: Sequence[ReleaseEntry], where: str) -> None:
    """Raise InvalidArgumentError unless `entries` can stand side by side in a release."""
    if not 1 <= len(entries) <= ARMS_MAX:
        raise InvalidArgumentError(
            "wrong number of entries", where=where, expected=f"1 to {ARMS_MAX}", got=len(entries)
        )
    for entry in entries:
        if entry.role not in ("live", "canary", "shadow"):
            raise InvalidArgumentError(
                "unknown role", where=where, expected="live, canary or shadow", got=repr(entry.role)
            )
        if not (entry.weight == 0.0 or WEIGHT_MIN <= entry.weight <= WEIGHT_MAX):
            raise InvalidArgumentError(
                f"not a weight for {entry.version!r}",
                where=where,
                expected=f"0, or {WEIGHT_MIN:g} to {WEIGHT_MAX:g}",
                got=entry.weight,
            )
        if entry.arm is not None:
            check_name(entry.arm, f"{where}: arm")
    live = sum(entry.role == "live" for entry in entries)
    if live != 1:
        raise InvalidArgumentError(
            "wrong number of live versions", where=where, expected="exactly one", got=live
        )
    if not any(entry.weight > 0.0 for entry in entries if entry.role != "shadow"):
        raise InvalidArgumentError(
            "nothing would answer", where=where, expected="a live or canary weight above 0", got="0"
        )
    named = [entry.arm for entry in entries if entry.arm is not None]
    if len(set(named)) != len(named):
        raise InvalidArgumentError("an arm is there twice", where=where, got=named)


def check_name(name: str, where: str) -> None:
    """Raise InvalidArgumentError unless `name` can stand in a plan and in a path of the log."""
    if not (
        0 < len(name) <= NAME_CHARACTERS_MAX
        and name[0] not in "_.-"
        and _NAME_CHARACTERS.issuperset(name)
    ):
        raise InvalidArgumentError(
            "a name that cannot be used",
            where=where,
            expected=f"1 to {NAME_CHARACTERS_MAX} of letters, digits, '_', '-', '.', no sign first",
            got=repr(name[:NAME_CHARACTERS_MAX]),
        )


def check_share(share: float, where: str) -> None:
    """Raise InvalidArgumentError unless `share` is one of the answers that a log explains."""
    if not 0.0 <= share <= 1.0:
        raise InvalidArgumentError(
            "not a share", where=f"{where}: explain", expected="0 to 1", got=share
        )


def name_arms(entries: Sequence[ReleaseEntry], now: Release | None) -> list[ReleaseEntry]:
    """Return `entries` with every arm named.

    An entry without a name keeps the arm that its version has `now`, so that a ramp goes on with
    the same units; a new version gets the first free letter.
    """
    taken = {entry.arm for entry in entries if entry.arm is not None}
    before = [] if now is None else list(now.entries)
    named = []
    for entry in entries:
        arm = entry.arm
        if arm is None:
            kept = (e.arm for e in before if e.version == entry.version and e.arm not in taken)
            arm = next(kept, None)
        if arm is None:
            held = taken.union(e.arm for e in before)
            arm = next(letter for letter in _letters() if letter not in held)
        taken.add(arm)
        named.append(msgspec.structs.replace(entry, arm=arm))
    return named


def choose_salt(
    entries: Sequence[ReleaseEntry], now: Release | None, environment: str, model: str
) -> str:
    """Return the salt of the release that follows `now`.

    While the same versions answer under the same arms, only weights move: the salt stays, and a
    ramp moves units one way only. Another set of arms is another experiment: a fresh salt, so that
    the last one's winners are not carried over.
    """
    if now is not None and _answering(now.entries) == _answering(entries):
        return now.salt
    sequence = 1 if now is None else now.sequence + 1
    return digest_json([environment, model, sequence]).removeprefix("sha256:")[:16]


def target(history: Sequence[Release], to: int | None, where: str) -> Release:
    """Return the release that a rollback restores.

    Without `to`: what stood before the current one; where that is a rollback itself, before the
    release that it restored, so that rolling back twice goes back twice. Raises
    FailedPreconditionError when there is nothing, InvalidArgumentError for an unknown `to`.
    """
    by_sequence = {release.sequence: release for release in history}

    def origin(release: Release) -> Release:
        return release if release.back_to is None else by_sequence[release.back_to]

    if not history:
        raise FailedPreconditionError("nothing is released", where=where)
    if to is None:
        before = by_sequence.get(origin(history[-1]).sequence - 1)
        if before is None:
            raise FailedPreconditionError(
                "nothing was released before this", where=where, mend="release another version"
            )
        return origin(before)
    if to not in by_sequence:
        raise InvalidArgumentError(
            "no such release", where=where, expected=f"1 to {history[-1].sequence}", got=to
        )
    return origin(by_sequence[to])


def check_sequence(now: Release | None, expected: int, where: str) -> None:
    """Raise FailedPreconditionError when someone else released in between (compare and swap)."""
    current = 0 if now is None else now.sequence
    if current != expected:
        raise FailedPreconditionError(
            "someone released in between",
            where=where,
            expected=f"sequence {expected}",
            got=f"sequence {current}",
            mend="look at what is released now, then try again with its sequence",
        )


def check_releasable(connection: Connection, release: Release, where: str) -> None:
    """Raise FailedPreconditionError unless every version is approved, by another, and in time."""
    for entry in release.entries:
        version = versions.find(connection, release.model, entry.version)
        approvers = {approval.approver for approval in version.approvals}
        if version.state != "approved" or not approvers or version.author in approvers:
            raise FailedPreconditionError(
                f"v{version.number} is not approved",
                where=where,
                expected="an approved version",
                got=version.state,
                mend="submit, review and approve it first, or release another",
            )
        if versions.is_over(version, release.when_us):
            raise FailedPreconditionError(
                f"the approval of v{version.number} has ended",
                where=where,
                mend="register the model anew and have it approved",
            )


def check_not_released(connection: Connection, version: Version) -> None:
    """Raise FailedPreconditionError while a current release of any environment holds `version`."""
    environments = select(schema.releases.c.environment).distinct()
    for row in connection.execute(environments).all():
        for release in current(connection, row.environment, version.model):
            if any(entry.version == version.digest for entry in release.entries):
                raise FailedPreconditionError(
                    "it is in the current release",
                    where=f"{versions.place(version)}",
                    got=f"sequence {release.sequence} of {release.environment}",
                    mend="roll back, or release without it, then revoke it",
                )


def add(connection: Connection, release: Release) -> None:
    """Append a checked release, recorded."""
    row = msgspec.to_builtins(release)
    entries, explain = row.pop("entries"), row.pop("explain", None)
    key = {name: row[name] for name in ("environment", "model", "sequence")}
    connection.execute(insert(schema.releases).values(row))
    connection.execute(
        insert(schema.release_entries),
        [{**key, "position": position, **entry} for position, entry in enumerate(entries)],
    )
    if explain is not None:
        connection.execute(insert(schema.release_logs).values(**key, explain=explain))
    action = "release" if release.back_to is None else "rollback"
    audit.append(
        connection,
        release.when_us,
        release.by,
        action,
        f"{release.environment}/{release.model}",
        release.why,
        msgspec.to_builtins(release),
    )


def history(connection: Connection, environment: str, model: str) -> list[Release]:
    """Return all releases of a model, the oldest first."""
    return _load(connection, environment, schema.releases.c.model == model)


def everything(connection: Connection) -> list[Release]:
    """Return all releases of all environments, in the order of their plans."""
    environments = connection.execute(
        select(schema.releases.c.environment).distinct().order_by(schema.releases.c.environment)
    )
    return [release for row in environments for release in _load(connection, row.environment)]


def current(connection: Connection, environment: str, model: str | None = None) -> list[Release]:
    """Return the newest release of each model (or of `model`), by the models' names."""
    table = schema.releases
    query = select(func.max(table.c.plan)).where(table.c.environment == environment)
    if model is not None:
        query = query.where(table.c.model == model)
    newest = query.group_by(table.c.model)
    found = _load(connection, environment, table.c.plan.in_(newest))
    return sorted(found, key=lambda release: release.model)


def plan_number(connection: Connection, environment: str) -> int:
    """Return the number of the newest plan, 0 before the first release."""
    table = schema.releases
    query = select(func.coalesce(func.max(table.c.plan), 0))
    number: int = connection.execute(query.where(table.c.environment == environment)).scalar_one()
    return number


def plan(connection: Connection, environment: str) -> dict[str, Any]:
    """Return the release plan as the JSON object of CONTRACTS §7."""
    return {
        "plan": plan_number(connection, environment),
        "models": {
            release.model: {
                "policy": {
                    "kind": release.policy_kind,
                    "key": release.key,
                    "salt": release.salt,
                },
                "arms": [
                    {
                        "arm": entry.arm,
                        "version": entry.version,
                        "role": entry.role,
                        "weight": entry.weight,
                    }
                    for entry in release.entries
                ],
                "log": {
                    "sample": 1.0,
                    "payload": 0.0,
                    **({"explain": release.explain} if release.explain else {}),
                },
                "limits": {},
            }
            for release in current(connection, environment)
        },
    }


def _load(connection: Connection, environment: str, *conditions: Any) -> list[Release]:
    table, parts, logs = schema.releases, schema.release_entries, schema.release_logs
    same = ("environment", "model", "sequence")
    rows = connection.execute(
        select(table, logs.c.explain)
        .outerjoin(logs, and_(*(logs.c[name] == table.c[name] for name in same)))
        .where(table.c.environment == environment, *conditions)
        .order_by(table.c.plan)
    ).all()
    entries: dict[tuple[str, int], list[ReleaseEntry]] = {}
    joined = (
        select(parts)
        .join(
            table,
            (parts.c.environment == table.c.environment)
            & (parts.c.model == table.c.model)
            & (parts.c.sequence == table.c.sequence),
        )
        .where(table.c.environment == environment, *conditions)
        .order_by(parts.c.position)
    )
    for part in connection.execute(joined):
        entry = ReleaseEntry(part.version, part.role, part.weight, part.arm)
        entries.setdefault((part.model, part.sequence), []).append(entry)
    found = []
    for row in rows:
        # SQLAlchemy's names of reserved words ("by", "key") are a subclass of str.
        fields = {str(name): value for name, value in row._asdict().items()}
        fields["entries"] = entries[row.model, row.sequence]
        if row.explain is None:
            del fields["explain"]
        found.append(msgspec.convert(fields, Release))
    return found


def _answering(entries: Sequence[ReleaseEntry]) -> set[tuple[str | None, str]]:
    return {(entry.arm, entry.version) for entry in entries if entry.role != "shadow"}


def _letters() -> Sequence[str]:
    return [*string.ascii_lowercase, *(f"arm{number}" for number in range(2 * ARMS_MAX))]
