"""The audit: every kind of tampering with the registry's file is noticed by `verify`."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable

import pytest

from headrace.errors import FailedPreconditionError, HeadraceError
from tests.trainer.registry.conftest import Desk
from trainer.registry import Head, ReleaseEntry


@pytest.fixture
def desk_with_history(desk: Desk) -> Desk:
    desk.approved(1)
    desk.approved(2)
    desk.in_review(3)
    desk.registry.apply_definitions(b"source", [("plane", "h1"), ("route", "h2")], "ann")
    desk.registry.record_run({"run": "r-1", "seconds": 0.1}, "ann")
    desk.registry.record_run({"run": "r-2"}, "ann")
    entries = [ReleaseEntry("v1", weight=0.9), ReleaseEntry("v2", "canary", 0.1)]
    desk.registry.release("delay", entries, "bob", "split", 0)
    desk.registry.release("delay", [ReleaseEntry("v2")], "bob", "all in", 1)
    desk.registry.rollback("delay", None, "bob", "late")
    desk.registry.release("delay", [ReleaseEntry("v1")], "bob", "x", 0, environment="staging")
    return desk


def rewrite(desk: Desk, *statements: str) -> None:
    """Write to the file as someone who has it: without the guards."""
    raw = sqlite3.connect(desk.folder / "registry.db", isolation_level=None)
    guards = raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for (guard,) in guards:
        raw.execute(f"DROP TRIGGER {guard}")
    for statement in statements:
        assert raw.execute(statement).rowcount > 0, statement
    raw.close()


def rows(desk: Desk) -> list[tuple[object, ...]]:
    raw = sqlite3.connect(desk.folder / "registry.db")
    found = raw.execute("SELECT * FROM events ORDER BY sequence").fetchall()
    raw.close()
    return found


def test_the_chain_is_the_formula(desk_with_history: Desk) -> None:
    """h_i = SHA-256(0x00 ‖ h_{i−1} ‖ canonical(e_i)), computed with the standard library alone."""
    link = bytes(32)
    for *facts, chained in rows(desk_with_history):
        canonical = json.dumps(facts, separators=(",", ":"), ensure_ascii=False).encode()
        link = hashlib.sha256(b"\0" + link + canonical).digest()
        assert link.hex() == chained
    assert desk_with_history.registry.verify() == Head(len(rows(desk_with_history)), link.hex())


def test_an_empty_registry_verifies(desk: Desk) -> None:
    genesis = Head(0, "0" * 64)
    assert desk.registry.verify() == genesis
    assert desk.registry.verify(genesis) == genesis


def test_events_are_read_in_pages(desk_with_history: Desk) -> None:
    registry = desk_with_history.registry
    everything = registry.events()
    pages = [registry.events(after, 4) for after in range(0, len(everything), 4)]
    assert [event for page in pages for event in page] == everything
    assert [event.sequence for event in everything] == list(range(1, len(everything) + 1))


@pytest.mark.parametrize("column", ["when_us", "actor", "action", "subject", "why", "body", "hash"])
def test_an_edited_event_is_named(desk_with_history: Desk, column: str) -> None:
    value = "7" if column == "when_us" else "'{\"a\":1}'"
    rewrite(desk_with_history, f"UPDATE events SET {column} = {value} WHERE sequence = 3")
    with pytest.raises(FailedPreconditionError, match="event 3 is not what was written"):
        desk_with_history.registry.verify()


V1, V3 = (f"(SELECT digest FROM versions WHERE number = {number})" for number in (1, 3))
TAMPERING = {
    "a removed event": ["DELETE FROM events WHERE sequence = 2"],
    "two events swapped": [
        "UPDATE events SET sequence = -1 WHERE sequence = 2",
        "UPDATE events SET sequence = 2 WHERE sequence = 3",
        "UPDATE events SET sequence = 3 WHERE sequence = -1",
    ],
    "an event put in": [
        "INSERT INTO events SELECT 99, 1, 'a', 'x', 's', 'w', '{}', hash FROM events LIMIT 1"
    ],
    "a state": ["UPDATE versions SET state = 'approved' WHERE number = 3"],
    "an author": ["UPDATE versions SET author = 'bob' WHERE number = 1"],
    "an approval put in": [f"INSERT INTO approvals SELECT {V3}, 'eve', 'w', 1, NULL"],
    "an approval moved": [f"UPDATE approvals SET digest = {V3} WHERE digest = {V1}"],
    "an approval without end": ["UPDATE approvals SET expires_us = 9999999"],
    "a weight": ["UPDATE release_entries SET weight = 0.5 WHERE role = 'canary'"],
    "a released version": [f"UPDATE release_entries SET version = {V3} WHERE sequence = 2"],
    "a share put in": [
        "INSERT INTO release_logs SELECT environment, model, sequence, 1 FROM releases LIMIT 1"
    ],
    "who released": ["UPDATE releases SET \"by\" = 'eve' WHERE sequence = 2"],
    "the last release gone": [
        "DELETE FROM release_entries WHERE environment = 'staging'",
        "DELETE FROM releases WHERE environment = 'staging'",
    ],
    "other definitions": ['UPDATE definitions SET ids = \'{"h1":2,"h2":1}\''],
    "other schema ids": ["UPDATE schema_ids SET name = 'tail' WHERE id = 1"],
    "a run": ['UPDATE runs SET body = \'{"run":"r-1","seconds":0.2}\' WHERE run = \'r-1\''],
    "a run gone": ["DELETE FROM runs WHERE run = 'r-2'"],
}


@pytest.mark.parametrize("kind", TAMPERING)
def test_tampering_with_the_file_is_noticed(desk_with_history: Desk, kind: str) -> None:
    desk_with_history.registry.verify()
    rewrite(desk_with_history, *TAMPERING[kind])
    with pytest.raises(HeadraceError):
        desk_with_history.registry.verify()


def test_a_cut_end_shows_against_the_anchor_only(desk: Desk) -> None:
    """The chain alone cannot miss what was cut off: that is what the anchor is for."""
    desk.draft(1)
    before = desk.registry.verify()
    desk.registry.submit("delay", "v1", "ann", "x")
    anchor = desk.registry.verify()
    rewrite(desk, "DELETE FROM events WHERE sequence = 2", "UPDATE versions SET state = 'draft'")
    assert desk.registry.verify() == desk.registry.verify(before) == before
    with pytest.raises(FailedPreconditionError, match="event 2 of the anchor"):
        desk.registry.verify(anchor)


def test_an_anchor_holds_while_the_chain_grows(desk: Desk) -> None:
    desk.draft(1)
    anchor = desk.registry.verify()
    desk.draft(2)
    assert desk.registry.verify(anchor).sequence == 2


def damage_model(desk: Desk) -> None:
    damage(desk, desk.registry.manifest("delay", "v1").files[2].sha256)


def damage_manifest(desk: Desk) -> None:
    damage(desk, desk.registry.version("delay", "v3").digest)


def damage_definitions(desk: Desk) -> None:
    newest = desk.registry.definitions()
    assert newest is not None
    damage(desk, newest.digest)


def damage(desk: Desk, digest: str) -> None:
    hexadecimal = digest.removeprefix("sha256:")
    path = desk.folder / "artifacts" / "sha256" / hexadecimal[:2] / hexadecimal
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [damage_model, damage_manifest, damage_definitions])
def test_a_damaged_blob_is_noticed(desk_with_history: Desk, spoil: Callable[[Desk], None]) -> None:
    spoil(desk_with_history)
    with pytest.raises(FailedPreconditionError, match="damaged"):
        desk_with_history.registry.verify()
