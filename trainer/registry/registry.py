"""The registry: who made which version, who vouched for it, and what runs (CONTRACTS §7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from headrace.errors import InvalidArgumentError
from trainer.bundle import Manifest, read_bundle
from trainer.registry import audit, catalog, integrity, releases, versions
from trainer.registry.artifacts import ArtifactStore
from trainer.registry.database import Database
from trainer.registry.records import (
    PRODUCTION,
    Definitions,
    Event,
    Head,
    Model,
    Release,
    ReleaseEntry,
    Run,
    Version,
)
from trainer.registry.states import Action

REGISTRAR = "registry"  # who is named where no person acts: an approval that reached its end


class Registry:
    """All that control keeps, in one SQLite file and one artifact folder.

    Every change is one transaction with its event in the audit; `actor`, `by` and `why` are needed
    and recorded. Times are UTC microseconds from `clock`. Threads and processes may share it.
    Errors: NotFoundError, InvalidArgumentError, FailedPreconditionError (state, sequence, bytes),
    PermissionDeniedError (four eyes), UnavailableError (lock, disk).
    """

    def __init__(self, url: str, artifacts: ArtifactStore, clock: Callable[[], int]) -> None:
        self.artifacts = artifacts
        self._clock = clock
        self._listeners: list[Callable[[int], None]] = []
        self._database = Database(url)

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the database's connections back."""
        self._database.close()

    def add_listener(self, listener: Callable[[int], None]) -> None:
        """Have `listener` called with the plan's new number after each release.

        It runs in the thread that released, after the commit, and must not raise. Releases that
        another process makes are not told.
        """
        self._listeners.append(listener)

    # Versions

    def register(self, bundle_folder: Path, actor: str, why: str) -> Version:
        """Keep the bundle's bytes and add it as a draft of the model that its manifest names.

        The same bytes again are the same version: it is returned as it is, with its first author.
        """
        audit.check_said(actor, why)
        bundle = read_bundle(bundle_folder)
        self.artifacts.put_bundle(bundle)
        return self.register_manifest(bundle.manifest.name, bundle.digest, actor, why)

    def register_manifest(self, model: str, manifest_digest: str, actor: str, why: str) -> Version:
        """Add a bundle whose blobs are in the artifacts already, as `register` does."""
        audit.check_said(actor, why)
        manifest = self.artifacts.verify(manifest_digest)
        if manifest.name != model:
            raise InvalidArgumentError(
                "the bundle is of another model",
                where=f"model {model!r}",
                expected=model,
                got=manifest.name,
            )
        with self._database.write() as connection:
            now_us = self._clock()
            return versions.add(connection, model, manifest_digest, actor, why, now_us)

    def submit(self, model: str, version: str, actor: str, why: str) -> Version:
        """Offer a draft for review: draft → candidate."""
        return self._move(model, version, "submit", actor, why)

    def review(self, model: str, version: str, actor: str, why: str) -> Version:
        """Begin the review: candidate → in_review."""
        return self._move(model, version, "review", actor, why)

    def reject(self, model: str, version: str, actor: str, why: str) -> Version:
        """Give a candidate, or one in review, back to its author: → draft."""
        return self._move(model, version, "reject", actor, why)

    def approve(
        self, model: str, version: str, actor: str, why: str, expires_us: int | None = None
    ) -> Version:
        """Vouch for exactly these bytes, until `expires_us`: in_review → approved.

        Raises PermissionDeniedError when `actor` is the author.
        """
        audit.check_said(actor, why)
        with self._database.write() as connection:
            found = versions.find(connection, model, version)
            return versions.approve(connection, found, actor, why, expires_us, self._clock())

    def revoke(self, model: str, version: str, actor: str, why: str) -> Version:
        """Take an approval back for good: approved → revoked.

        Raises FailedPreconditionError while the version is in a current release of any environment:
        what runs is changed first, so that the plan never holds a version without approval.
        """
        return self._move(model, version, "revoke", actor, why)

    def expire_due(self) -> list[Version]:
        """Move the versions whose approval reached its end: approved → expired.

        What is released stays so until the next release: an end of paper stops no traffic.
        """
        why = "the approval reached its end"
        with self._database.read() as connection:
            if not versions.due(connection, self._clock()):
                return []  # as most calls: those take no write lock
        with self._database.write() as connection:
            now_us = self._clock()
            return [
                versions.move(connection, version, "expire", REGISTRAR, why, now_us)
                for version in versions.due(connection, now_us)
            ]

    def models(self) -> list[Model]:
        """Return all models, by name."""
        with self._database.read() as connection:
            counts: dict[str, int] = {}
            for version in versions.everything(connection):
                counts[version.model] = counts.get(version.model, 0) + 1
            now = {release.model: release for release in releases.current(connection, PRODUCTION)}
        listed = []
        for name, count in counts.items():
            release = now.get(name)
            live = None if release is None else next(e for e in release.entries if e.role == "live")
            champion = None if live is None else live.version
            listed.append(Model(name, count, champion, 0 if release is None else release.sequence))
        return listed

    def versions(self, model: str) -> list[Version]:
        """Return all versions of `model`, the oldest first."""
        with self._database.read() as connection:
            return versions.listing(connection, model)

    def version(self, model: str, reference: str) -> Version:
        """Return one version by digest, six or more of its digits, `v3` or `champion`."""
        with self._database.read() as connection:
            return versions.find(connection, model, reference)

    def manifest(self, model: str, reference: str) -> Manifest:
        """Return a version's manifest, its own bytes verified."""
        return self.artifacts.manifest(self.version(model, reference).digest)

    # Releases

    def release(
        self,
        model: str,
        entries: Sequence[ReleaseEntry],
        by: str,
        why: str,
        expected_sequence: int,
        environment: str = PRODUCTION,
        key: str = "",
        explain: float = 0.0,
    ) -> Release:
        """Make `entries` (one live, with canaries and shadows beside it) what runs.

        `expected_sequence` is the sequence of the release that this one follows, 0 for none; `key`
        is what requests stick to; `explain` is the share of answers that are logged with
        attributions. Every version must be approved, in time, and whole in the
        artifacts.
        """
        audit.check_said(by, why)
        where = f"release of {model!r} in {environment}"
        releases.check_name(environment, f"{where}: environment")
        releases.check_entries(entries, where)
        releases.check_share(explain, where)
        entries = [
            msgspec.structs.replace(entry, version=self.version(model, entry.version).digest)
            for entry in entries
        ]
        self._verify_bytes(entries)
        with self._database.write() as connection:
            now = next(iter(releases.current(connection, environment, model)), None)
            releases.check_sequence(now, expected_sequence, where)
            named = releases.name_arms(entries, now)
            answering = sum(entry.role != "shadow" for entry in named)
            made = Release(
                environment=environment,
                model=model,
                sequence=expected_sequence + 1,
                plan=releases.plan_number(connection, environment) + 1,
                entries=named,
                policy_kind="single" if answering == 1 else "weighted",
                key=key,
                salt=releases.choose_salt(named, now, environment, model),
                by=by,
                why=why,
                when_us=self._clock(),
                back_to=None,
                explain=explain or msgspec.UNSET,
            )
            releases.check_releasable(connection, made, where)
            releases.add(connection, made)
        return self._tell(made)

    def rollback(
        self,
        model: str,
        to: int | None,
        by: str,
        why: str,
        expected_sequence: int | None = None,
        environment: str = PRODUCTION,
    ) -> Release:
        """Make an earlier release what runs again: arms, weights, key and salt, as a new entry.

        Without `to`: the one before the current. Its versions must still be approved and in time.
        """
        audit.check_said(by, why)
        where = f"rollback of {model!r} in {environment}"
        past = self.history(model, environment)
        goal = releases.target(past, to, where)
        if expected_sequence is None:
            expected_sequence = past[-1].sequence
        self._verify_bytes(goal.entries)
        with self._database.write() as connection:
            now = next(iter(releases.current(connection, environment, model)), None)
            # The list is append-only: at the same sequence, `goal` is what it was without the lock.
            releases.check_sequence(now, expected_sequence, where)
            made = msgspec.structs.replace(
                goal,
                sequence=expected_sequence + 1,
                plan=releases.plan_number(connection, environment) + 1,
                by=by,
                why=why,
                when_us=self._clock(),
                back_to=goal.sequence,
            )
            releases.check_releasable(connection, made, where)
            releases.add(connection, made)
        return self._tell(made)

    def history(self, model: str, environment: str = PRODUCTION) -> list[Release]:
        """Return all releases of `model`, the oldest first."""
        with self._database.read() as connection:
            return releases.history(connection, environment, model)

    def current(self, model: str, environment: str = PRODUCTION) -> Release | None:
        """Return what runs for `model`, None before the first release."""
        with self._database.read() as connection:
            return next(iter(releases.current(connection, environment, model)), None)

    def plan(self, environment: str = PRODUCTION) -> dict[str, Any]:
        """Return the release plan as the JSON object of CONTRACTS §7; number 0 with no models."""
        with self._database.read() as connection:
            return releases.plan(connection, environment)

    def plan_number(self, environment: str = PRODUCTION) -> int:
        """Return the plan's number, which grows by one with each release."""
        with self._database.read() as connection:
            return releases.plan_number(connection, environment)

    # Definitions and runs

    def apply_definitions(
        self, source: bytes, views: Sequence[tuple[str, str]], actor: str, why: str = "applied"
    ) -> dict[str, int]:
        """Keep `source` as the newest definitions; return a schema id for each (name, hash).

        `views` are views and services alike. Ids start at 1 and stay with their (name, hash).
        """
        audit.check_said(actor, why)
        catalog.check_views(views)
        digest = self.artifacts.put_bytes(source)
        with self._database.write() as connection:
            return catalog.apply(connection, digest, views, actor, why, self._clock())

    def definitions(self) -> Definitions | None:
        """Return the newest definitions with their source, None before the first."""
        with self._database.read() as connection:
            row = catalog.row(connection)
        if row is None:
            return None
        return Definitions(
            sequence=row.sequence,
            digest=row.digest,
            source=self.artifacts.read(row.digest),
            ids=msgspec.json.decode(row.ids),
            by=row.by,
            why=row.why,
            when_us=row.when_us,
        )

    def record_run(self, run: dict[str, Any], actor: str) -> Run:
        """Keep a pipeline's record of a run under its `run["run"]`; the same again is fine."""
        audit.check_said(actor, "recorded")
        with self._database.write() as connection:
            return catalog.record_run(connection, run, actor, self._clock())

    def run(self, run: str) -> Run:
        """Return one run."""
        with self._database.read() as connection:
            return catalog.find_run(connection, run)

    def runs(self, limit: int = 100) -> list[Run]:
        """Return the newest runs, the newest first."""
        with self._database.read() as connection:
            return catalog.runs(connection, limit)

    # Audit

    def events(self, after: int = 0, limit: int = 1000) -> list[Event]:
        """Return up to `limit` events behind sequence `after`, in order."""
        with self._database.read() as connection:
            return list(audit.read(connection, after, limit))

    def verify(self, anchor: Head | None = None) -> Head:
        """Check everything; return the chain's head, to be kept elsewhere as the next `anchor`.

        The chain's links, the tables against the events, and every byte of every version and of the
        definitions. Raises FailedPreconditionError or NotFoundError naming what is wrong.
        """
        with self._database.read() as connection:
            head = audit.verify_chain(connection, anchor)
            integrity.compare(connection)
            digests = [version.digest for version in versions.everything(connection)]
        for digest in digests:
            self.artifacts.verify(digest)
        self.definitions()
        return head

    def _move(self, model: str, reference: str, action: Action, actor: str, why: str) -> Version:
        audit.check_said(actor, why)
        with self._database.write() as connection:
            version = versions.find(connection, model, reference)
            if action == "revoke":
                releases.check_not_released(connection, version)
            return versions.move(connection, version, action, actor, why, self._clock())

    def _verify_bytes(self, entries: Sequence[ReleaseEntry]) -> None:
        """Compare every byte with what was approved: an approval is of a digest, not of a name."""
        for digest in sorted({entry.version for entry in entries}):
            self.artifacts.verify(digest)

    def _tell(self, release: Release) -> Release:
        for listener in self._listeners:
            listener(release.plan)
        return release
