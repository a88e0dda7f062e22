"""The registry through its own door: versions, four eyes, releases, rollback, definitions, runs."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import msgspec
import pytest

from headrace.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from router import parse_plan
from tests.support.bundles import make_bundle
from tests.trainer.registry.conftest import Desk
from trainer.bundle import read_bundle
from trainer.registry import ArtifactStore, Registry, ReleaseEntry

NOTHING = "sha256:" + "0" * 64


class TestVersions:
    def test_a_registered_bundle_is_a_draft_with_an_author(self, desk: Desk) -> None:
        version = desk.draft(1)
        assert (version.model, version.number, version.state) == ("delay", 1, "draft")
        assert (version.author, version.why, version.approvals) == ("ann", "version 1", [])
        assert version.registered_us == desk.now_us
        assert desk.registry.manifest("delay", "v1").name == "delay"
        assert desk.artifacts.verify(version.digest)

    def test_the_same_bytes_are_the_same_version(self, desk: Desk) -> None:
        first = desk.draft(1)
        make_bundle(desk.folder / "copy", 1)
        again = desk.registry.register(desk.folder / "copy", "eve", "mine!")
        assert again == first
        assert len(desk.registry.events()) == 1

    def test_a_bundle_may_come_as_blobs(self, desk: Desk) -> None:
        digest = make_bundle(desk.folder / "b", 1)
        with pytest.raises(NotFoundError):
            desk.registry.register_manifest("delay", digest, "ann", "x")
        desk.artifacts.put_bytes((desk.folder / "b" / "manifest.json").read_bytes())
        with pytest.raises(NotFoundError):
            desk.registry.register_manifest("delay", digest, "ann", "x")
        desk.artifacts.put_bundle(read_bundle(desk.folder / "b"))
        with pytest.raises(InvalidArgumentError, match="another model"):
            desk.registry.register_manifest("fraud", digest, "ann", "x")
        assert desk.registry.register_manifest("delay", digest, "ann", "x").digest == digest

    def test_a_broken_bundle_is_not_registered(self, desk: Desk) -> None:
        make_bundle(desk.folder / "b", 1)
        (desk.folder / "b" / "card.md").write_bytes(b"other")
        with pytest.raises(FailedPreconditionError):
            desk.registry.register(desk.folder / "b", "ann", "x")
        assert desk.registry.models() == []
        assert desk.registry.events() == []

    def test_a_version_is_found_by_any_of_its_names(self, desk: Desk) -> None:
        versions = [desk.approved(seed) for seed in range(3)]
        desk.registry.release("delay", [ReleaseEntry("v2")], "bob", "x", 0)
        two = versions[1]
        for reference in (two.digest, two.digest[7:], two.digest[7:15], two.digest[:20], "v2"):
            assert desk.registry.version("delay", reference) == two
        assert desk.registry.version("delay", "champion") == two
        assert desk.registry.versions("delay") == versions

    @pytest.mark.parametrize("reference", [NOTHING, "v9", "abcdef", "champion"])
    def test_a_version_that_is_not_there_is_not_found(self, desk: Desk, reference: str) -> None:
        desk.draft(1)
        with pytest.raises(NotFoundError, match=reference):
            desk.registry.version("delay", reference)

    @pytest.mark.parametrize("reference", ["", "v", "abc", "latest", "%", "sha256:_23456"])
    def test_what_names_no_version_is_refused(self, desk: Desk, reference: str) -> None:
        with pytest.raises(InvalidArgumentError, match="not a version"):
            desk.registry.version("delay", reference)

    def test_too_few_digits_are_refused(self, desk: Desk) -> None:
        with sqlite3.connect(desk.folder / "registry.db") as raw:
            for number in (1, 2):
                values = (f"sha256:{'a' * 63}{number}", "delay", number, "draft", "ann", "x", 1)
                raw.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        raw.close()
        with pytest.raises(InvalidArgumentError, match="add digits"):
            desk.registry.version("delay", "aaaaaa")
        assert desk.registry.version("delay", f"{'a' * 63}2").number == 2

    def test_a_model_that_is_not_there_is_not_found(self, desk: Desk) -> None:
        desk.draft(1)
        with pytest.raises(NotFoundError, match="fraud"):
            desk.registry.versions("fraud")
        with pytest.raises(NotFoundError):
            desk.registry.submit("fraud", "v1", "ann", "x")

    def test_models_are_listed_with_what_is_live(self, desk: Desk) -> None:
        one = desk.approved(1)
        desk.draft(2)
        desk.draft(1, "fraud")
        desk.registry.release("delay", [ReleaseEntry("v1")], "bob", "x", 0)
        delay, fraud = desk.registry.models()
        assert (delay.name, delay.versions, delay.champion, delay.sequence) == (
            "delay", 2, one.digest, 1,
        )  # fmt: skip
        assert (fraud.name, fraud.versions, fraud.champion, fraud.sequence) == ("fraud", 1, None, 0)

    @pytest.mark.parametrize(
        ("actor", "why"),
        [("", "x"), (" ", "x"), ("ann", ""), ("a" * 201, "x"), ("ann", "x" * 2001)],
    )
    def test_who_and_why_are_needed(self, desk: Desk, actor: str, why: str) -> None:
        desk.approved(1)
        before = desk.registry.events()
        entries = [ReleaseEntry("v1")]
        attempts = [
            lambda: desk.registry.register(desk.folder / "bundles" / "delay-1", actor, why),
            lambda: desk.registry.revoke("delay", "v1", actor, why),
            lambda: desk.registry.approve("delay", "v1", actor, why),
            lambda: desk.registry.release("delay", entries, actor, why, 0),
            lambda: desk.registry.rollback("delay", None, actor, why),
            lambda: desk.registry.apply_definitions(b"", [("a", "h")], actor, why),
        ]
        for attempt in attempts:
            with pytest.raises(InvalidArgumentError, match="is needed"):
                attempt()
        assert desk.registry.events() == before


class TestApproval:
    def test_the_way_to_approval_is_recorded(self, desk: Desk) -> None:
        version = desk.approved(1)
        assert version.state == "approved"
        (approval,) = version.approvals
        assert (approval.approver, approval.why, approval.expires_us) == ("bob", "good", None)
        told = [(e.action, e.actor, e.why, e.when_us) for e in desk.registry.events()]
        assert told == [
            ("register", "ann", "version 1", 1000),
            ("submit", "ann", "ready", 1001),
            ("review", "bob", "looking", 1002),
            ("approve", "bob", "good", 1003),
        ]

    def test_an_author_cannot_approve_their_own_version(self, desk: Desk) -> None:
        version = desk.in_review(1)
        with pytest.raises(PermissionDeniedError, match="author"):
            desk.registry.approve("delay", version.digest, "ann", "it is good")
        assert desk.registry.version("delay", "v1").state == "in_review"
        assert desk.registry.version("delay", "v1").approvals == []

    def test_only_what_is_in_review_is_approved(self, desk: Desk) -> None:
        desk.draft(1)
        with pytest.raises(FailedPreconditionError, match="expected state in_review, got draft"):
            desk.registry.approve("delay", "v1", "bob", "x")

    def test_what_is_rejected_goes_back_and_may_come_again(self, desk: Desk) -> None:
        desk.in_review(1)
        assert desk.registry.reject("delay", "v1", "bob", "no card").state == "draft"
        assert desk.registry.submit("delay", "v1", "ann", "card written").state == "candidate"
        assert desk.registry.reject("delay", "v1", "bob", "still none").state == "draft"

    def test_an_approval_is_of_one_digest(self, desk: Desk) -> None:
        """One other byte is another version, which nobody approved."""
        desk.approved(1)
        other = desk.draft(2)
        with pytest.raises(FailedPreconditionError, match="v2 is not approved"):
            desk.registry.release("delay", [ReleaseEntry(other.digest)], "bob", "x", 0)

    def test_an_approval_ends(self, desk: Desk) -> None:
        version = desk.approved(1, expires_us=1_010)
        assert version.approvals[0].expires_us == 1_010
        desk.registry.release("delay", [ReleaseEntry("v1")], "bob", "x", 0)
        assert desk.registry.expire_due() == []
        while desk.now_us < 1_010:
            desk.clock()
        with pytest.raises(FailedPreconditionError, match="approval of v1 has ended"):
            desk.registry.release("delay", [ReleaseEntry("v1", weight=0.5)], "bob", "x", 1)
        (expired,) = desk.registry.expire_due()
        assert expired.state == "expired"
        assert desk.registry.expire_due() == []
        event = desk.registry.events()[-1]
        assert (event.action, event.actor) == ("expire", "registry")
        with pytest.raises(FailedPreconditionError, match="v1 is not approved"):
            desk.registry.release("delay", [ReleaseEntry("v1", weight=0.5)], "bob", "x", 1)
        # An end of paper stops no traffic: what runs goes on until the next release.
        assert desk.registry.plan()["models"]["delay"]["arms"][0]["version"] == version.digest

    def test_an_approval_cannot_end_before_it_begins(self, desk: Desk) -> None:
        desk.in_review(1)
        with pytest.raises(InvalidArgumentError, match="ended already"):
            desk.registry.approve("delay", "v1", "bob", "x", expires_us=1_000)

    def test_what_runs_cannot_be_revoked(self, desk: Desk) -> None:
        one, _ = desk.approved(1), desk.approved(2)
        entries = [ReleaseEntry("v2"), ReleaseEntry("v1", "shadow")]
        desk.registry.release("delay", entries, "bob", "x", 0, environment="staging")
        with pytest.raises(FailedPreconditionError, match="sequence 1 of staging"):
            desk.registry.revoke("delay", "v1", "bob", "bad")
        desk.registry.release("delay", [ReleaseEntry("v2")], "bob", "x", 1, environment="staging")
        assert desk.registry.revoke("delay", "v1", "bob", "bad").state == "revoked"
        with pytest.raises(FailedPreconditionError, match="v1 is not approved"):
            desk.registry.release("delay", [ReleaseEntry(one.digest)], "bob", "x", 0)


class TestRelease:
    def test_a_release_is_the_plan(self, desk: Desk) -> None:
        one, two = desk.approved(1), desk.approved(2)
        entries = [ReleaseEntry("v1", weight=0.9), ReleaseEntry("v2", "canary", 0.1)]
        release = desk.registry.release("delay", entries, "bob", "try v2", 0, key="tailnum")
        assert desk.registry.current("delay") == release
        assert desk.registry.history("delay") == [release]
        assert desk.registry.plan() == {
            "plan": 1,
            "models": {
                "delay": {
                    "policy": {"kind": "weighted", "key": "tailnum", "salt": release.salt},
                    "arms": [
                        {"arm": "a", "version": one.digest, "role": "live", "weight": 0.9},
                        {"arm": "b", "version": two.digest, "role": "canary", "weight": 0.1},
                    ],
                    "log": {"sample": 1.0, "payload": 0.0},
                    "limits": {},
                }
            },
        }

    def test_a_release_says_which_share_of_its_answers_is_explained(self, desk: Desk) -> None:
        desk.approved(1)
        entries = [ReleaseEntry("v1")]
        plain = desk.registry.release("delay", entries, "bob", "x", 0)
        sampled = desk.registry.release("delay", entries, "bob", "x", 1, explain=0.01)
        log = {"sample": 1.0, "payload": 0.0, "explain": 0.01}
        assert desk.registry.plan()["models"]["delay"]["log"] == log
        assert desk.registry.history("delay") == [plain, sampled]
        parse_plan(json.dumps(desk.registry.plan()).encode())
        desk.registry.verify()
        back = desk.registry.rollback("delay", None, "bob", "too much")
        assert desk.registry.plan()["models"]["delay"]["log"] == {"sample": 1.0, "payload": 0.0}
        assert "explain" not in msgspec.to_builtins(back)
        again = desk.registry.rollback("delay", 2, "bob", "after all")
        assert again.explain == 0.01
        for share in (-0.1, 1.1, float("nan")):
            with pytest.raises(InvalidArgumentError, match="not a share"):
                desk.registry.release("delay", entries, "bob", "x", 4, explain=share)

    def test_a_registry_of_before_takes_such_a_release(self, desk: Desk) -> None:
        desk.approved(1)
        desk.registry.release("delay", [ReleaseEntry("v1")], "bob", "x", 0)
        raw = sqlite3.connect(desk.folder / "registry.db")
        raw.execute("DROP TABLE release_logs")
        raw.commit()
        raw.close()
        with desk.open() as registry:
            registry.release("delay", [ReleaseEntry("v1")], "bob", "x", 1, explain=0.5)
            assert [release.explain for release in registry.history("delay")] == [
                msgspec.UNSET, 0.5
            ]  # fmt: skip
            registry.verify()
        raw = sqlite3.connect(desk.folder / "registry.db")
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            raw.execute("UPDATE release_logs SET explain = 1")
        raw.close()

    def test_nothing_released_is_an_empty_plan(self, registry: Registry) -> None:
        assert registry.plan() == {"plan": 0, "models": {}}
        assert registry.plan_number() == 0
        assert registry.current("delay") is None
        assert registry.history("delay") == []

    def test_the_number_grows_with_every_release_of_every_model(self, desk: Desk) -> None:
        desk.approved(1)
        desk.approved(1, "fraud")
        heard: list[int] = []
        desk.registry.add_listener(heard.append)
        desk.registry.release("delay", [ReleaseEntry("v1")], "bob", "x", 0)
        desk.registry.release("fraud", [ReleaseEntry("v1")], "bob", "x", 0)
        desk.registry.release("delay", [ReleaseEntry("v1", weight=2.0)], "bob", "x", 1)
        desk.registry.rollback("delay", None, "bob", "x")
        assert heard == [1, 2, 3, 4]
        plan = parse_plan(json.dumps(desk.registry.plan()).encode())
        assert (plan.plan, sorted(plan.models)) == (4, ["delay", "fraud"])

    def test_environments_are_apart(self, desk: Desk) -> None:
        desk.approved(1)
        desk.registry.release("delay", [ReleaseEntry("v1")], "bob", "x", 0, environment="staging")
        assert desk.registry.plan() == {"plan": 0, "models": {}}
        assert desk.registry.plan("staging")["plan"] == 1
        assert desk.registry.models()[0].champion is None
        with pytest.raises(InvalidArgumentError, match="environment"):
            desk.registry.release("delay", [ReleaseEntry("v1")], "bob", "x", 0, environment="a/b")

    @pytest.mark.parametrize("expected", [0, 2])
    def test_a_release_follows_the_one_that_was_seen(self, desk: Desk, expected: int) -> None:
        desk.approved(1)
        desk.registry.release("delay", [ReleaseEntry("v1")], "bob", "x", 0)
        with pytest.raises(FailedPreconditionError, match="got sequence 1"):
            desk.registry.release("delay", [ReleaseEntry("v1")], "eve", "x", expected)
        assert len(desk.registry.history("delay")) == 1

    @pytest.mark.parametrize(
        ("entries", "names"),
        [
            ([], "number of entries"),
            ([ReleaseEntry("v1")] * 17, "number of entries"),
            ([ReleaseEntry("v1", "canary")], "live"),
            ([ReleaseEntry("v1"), ReleaseEntry("v2")], "live"),
            ([ReleaseEntry("v1", "boss")], "boss"),  # type: ignore[arg-type]
            ([ReleaseEntry("v1", weight=-1.0)], "weight"),
            ([ReleaseEntry("v1", weight=float("nan"))], "weight"),
            ([ReleaseEntry("v1", weight=float("inf"))], "weight"),
            ([ReleaseEntry("v1", weight=0.0)], "answer"),
            ([ReleaseEntry("v1", weight=0.0), ReleaseEntry("v2", "shadow")], "answer"),
            ([ReleaseEntry("v1", arm="a b")], "arm"),
            ([ReleaseEntry("v1", arm="")], "arm"),
            ([ReleaseEntry("v1", arm="x"), ReleaseEntry("v2", "shadow", arm="x")], "twice"),
        ],
    )
    def test_a_set_that_cannot_run_is_refused(
        self, desk: Desk, entries: list[ReleaseEntry], names: str
    ) -> None:
        desk.approved(1)
        desk.approved(2)
        with pytest.raises(InvalidArgumentError, match=names):
            desk.registry.release("delay", entries, "bob", "x", 0)

    def test_a_version_of_another_model_is_not_released(self, desk: Desk) -> None:
        other = desk.approved(1, "fraud")
        with pytest.raises(NotFoundError):
            desk.registry.release("delay", [ReleaseEntry(other.digest)], "bob", "x", 0)

    def test_bytes_are_compared_again_before_they_run(self, desk: Desk) -> None:
        version = desk.approved(1)
        model = desk.registry.manifest("delay", "v1").files[2]
        assert model.path == "model.onnx"
        hexadecimal = model.sha256.removeprefix("sha256:")
        path = desk.folder / "artifacts" / "sha256" / hexadecimal[:2] / hexadecimal
        path.chmod(0o644)
        path.write_bytes(b"model X")
        with pytest.raises(FailedPreconditionError, match="damaged"):
            desk.registry.release("delay", [ReleaseEntry(version.digest)], "bob", "x", 0)
        assert desk.registry.plan_number() == 0

    def test_a_ramp_keeps_arms_and_salt_and_a_new_set_gets_fresh_ones(self, desk: Desk) -> None:
        for seed in range(3):
            desk.approved(seed)

        def release(sequence: int, *entries: ReleaseEntry) -> tuple[list[str | None], str]:
            made = desk.registry.release("delay", list(entries), "bob", "x", sequence)
            return [entry.arm for entry in made.entries], made.salt

        live = ReleaseEntry("v1", weight=0.9)
        arms, salt = release(0, live, ReleaseEntry("v2", "canary", 0.1))
        assert arms == ["a", "b"]
        ramp = release(1, ReleaseEntry("v2", "canary", 0.5), live)
        assert ramp == (["b", "a"], salt)
        with_shadow = release(
            2, live, ReleaseEntry("v2", "canary", 0.5), ReleaseEntry("v3", "shadow")
        )
        assert with_shadow == (["a", "b", "c"], salt)
        promoted = release(3, ReleaseEntry("v2"))
        assert promoted[0] == ["b"]
        assert promoted[1] != salt
        same_twice = release(4, ReleaseEntry("v2"), ReleaseEntry("v2", "canary"))
        assert same_twice[0] == ["b", "a"]  # an A/A test: one version under two arms
        named = release(5, ReleaseEntry("v2", arm="control"), ReleaseEntry("v1", "canary"))
        assert named[0] == ["control", "c"]
        assert len({salt, promoted[1], same_twice[1], named[1]}) == 4


class TestRollback:
    def history(self, desk: Desk) -> list[tuple[str, int | None]]:
        numbers = {
            version.digest: f"v{version.number}" for version in desk.registry.versions("delay")
        }
        return [
            (numbers[release.entries[0].version], release.back_to)
            for release in desk.registry.history("delay")
        ]

    def released(self, desk: Desk, count: int) -> None:
        for seed in range(count):
            desk.approved(seed)
            desk.registry.release("delay", [ReleaseEntry(f"v{seed + 1}")], "bob", "x", seed)

    def test_going_back_twice_goes_back_twice(self, desk: Desk) -> None:
        self.released(desk, 3)
        desk.registry.rollback("delay", None, "bob", "late")
        desk.registry.rollback("delay", None, "bob", "late, too")
        assert self.history(desk) == [
            ("v1", None),
            ("v2", None),
            ("v3", None),
            ("v2", 2),
            ("v1", 1),
        ]
        with pytest.raises(FailedPreconditionError, match="nothing was released before"):
            desk.registry.rollback("delay", None, "bob", "again")

    def test_a_release_after_a_rollback_goes_back_to_it(self, desk: Desk) -> None:
        self.released(desk, 3)
        desk.registry.rollback("delay", 1, "bob", "x")
        desk.registry.release("delay", [ReleaseEntry("v3")], "bob", "x", 4)
        desk.registry.rollback("delay", None, "bob", "x")
        assert self.history(desk)[3:] == [("v1", 1), ("v3", None), ("v1", 1)]

    def test_a_rollback_restores_arms_weights_key_and_salt(self, desk: Desk) -> None:
        desk.approved(1)
        desk.approved(2)
        split = [ReleaseEntry("v1", weight=0.7), ReleaseEntry("v2", "canary", 0.3)]
        first = desk.registry.release("delay", split, "bob", "x", 0, key="tailnum")
        desk.registry.release("delay", [ReleaseEntry("v2")], "bob", "x", 1)
        back = desk.registry.rollback("delay", 1, "eve", "v2 is late")
        assert (back.by, back.why, back.back_to, back.plan) == ("eve", "v2 is late", 1, 3)
        kept = ("entries", "policy_kind", "key", "salt")
        assert [getattr(back, name) for name in kept] == [getattr(first, name) for name in kept]
        assert desk.registry.events()[-1].action == "rollback"

    def test_there_is_no_way_back_to_a_revoked_version(self, desk: Desk) -> None:
        self.released(desk, 2)
        desk.registry.revoke("delay", "v1", "bob", "wrong")
        with pytest.raises(FailedPreconditionError, match="v1 is not approved"):
            desk.registry.rollback("delay", None, "bob", "x")

    @pytest.mark.parametrize("to", [0, 3, -1])
    def test_an_unknown_release_is_refused(self, desk: Desk, to: int) -> None:
        self.released(desk, 2)
        with pytest.raises(InvalidArgumentError, match="1 to 2"):
            desk.registry.rollback("delay", to, "bob", "x")

    def test_a_stale_rollback_is_refused(self, desk: Desk) -> None:
        self.released(desk, 2)
        with pytest.raises(FailedPreconditionError, match="in between"):
            desk.registry.rollback("delay", None, "bob", "x", expected_sequence=1)

    def test_nothing_released_cannot_be_rolled_back(self, desk: Desk) -> None:
        desk.draft(1)
        with pytest.raises(FailedPreconditionError, match="nothing is released"):
            desk.registry.rollback("delay", None, "bob", "x")


class TestDefinitionsAndRuns:
    def test_an_id_stays_with_its_hash(self, registry: Registry) -> None:
        first = registry.apply_definitions(b"one", [("plane", "h1"), ("route", "h2")], "ann")
        assert first == {"h1": 1, "h2": 2}
        changed = registry.apply_definitions(b"two", [("plane", "h3"), ("route", "h2")], "ann")
        assert changed == {"h3": 3, "h2": 2}
        back = registry.apply_definitions(b"one", [("route", "h2"), ("plane", "h1")], "ann", "back")
        assert back == first
        newest = registry.definitions()
        assert newest is not None
        assert (newest.sequence, newest.source, newest.ids) == (3, b"one", first)
        assert (newest.by, newest.why) == ("ann", "back")

    def test_applying_the_same_again_changes_nothing(self, registry: Registry) -> None:
        assert registry.definitions() is None
        for _ in range(2):
            registry.apply_definitions(b"one", [("plane", "h1")], "ann")
        assert len(registry.events()) == 1

    @pytest.mark.parametrize("views", [[], [("", "h")], [("a", "")], [("a", "h"), ("b", "h")]])
    def test_views_must_tell_apart(self, registry: Registry, views: list[tuple[str, str]]) -> None:
        with pytest.raises(InvalidArgumentError, match="definitions"):
            registry.apply_definitions(b"", views, "ann")

    def test_ids_fit_a_packed_row(self, desk: Desk) -> None:
        with sqlite3.connect(desk.folder / "registry.db") as raw:
            raw.execute("INSERT INTO schema_ids VALUES (4294967294, 'x', 'x')")
        raw.close()
        assert desk.registry.apply_definitions(b"", [("a", "h")], "ann") == {"h": 2**32 - 1}
        with pytest.raises(ResourceExhaustedError):
            desk.registry.apply_definitions(b"", [("a", "h2")], "ann")

    def test_a_run_is_kept_as_it_was_told(self, registry: Registry) -> None:
        body = {"run": "r-1", "seconds": 1.5, "lineage": {"rows": [1, None]}}
        run = registry.record_run(body, "ann")
        assert (run.run, run.by, run.body) == ("r-1", "ann", body)
        assert registry.record_run(body, "ann") == run
        second = registry.record_run({"run": "r-2"}, "ann")
        assert registry.runs() == [second, run]
        assert registry.runs(limit=1) == [second]
        assert registry.run("r-1") == run
        with pytest.raises(AlreadyExistsError, match="r-1"):
            registry.record_run({**body, "seconds": 2}, "ann")
        with pytest.raises(NotFoundError, match="r-3"):
            registry.run("r-3")

    @pytest.mark.parametrize("body", [{}, {"run": ""}, {"run": 7}])
    def test_a_run_needs_an_id(self, registry: Registry, body: dict[str, object]) -> None:
        with pytest.raises(InvalidArgumentError, match="id"):
            registry.record_run(body, "ann")

    def test_a_run_is_bounded(self, registry: Registry) -> None:
        with pytest.raises(ResourceExhaustedError, match="too large"):
            registry.record_run({"run": "r", "x": "x" * (9 << 20)}, "ann")


class TestDatabase:
    def test_all_is_there_after_a_restart(self, desk: Desk) -> None:
        version = desk.approved(1)
        release = desk.registry.release("delay", [ReleaseEntry("v1")], "bob", "x", 0)
        head = desk.registry.verify()
        desk.registry.close()
        with desk.open() as again:
            assert again.version("delay", "v1") == msgspec.structs.replace(version)
            assert again.history("delay") == [release]
            assert again.verify(head) == head

    def test_a_newer_schema_is_refused(self, desk: Desk) -> None:
        desk.registry.close()
        with sqlite3.connect(desk.folder / "registry.db") as raw:
            raw.execute("UPDATE schema SET version = 2")
        raw.close()
        with pytest.raises(FailedPreconditionError, match="expected schema version 1, got 2"):
            desk.open()

    def test_a_file_that_is_no_database_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "registry.db").write_bytes(b"no database at all" * 100)
        with pytest.raises(FailedPreconditionError, match="no registry"):
            Registry(f"sqlite:///{tmp_path}/registry.db", ArtifactStore(tmp_path / "a"), lambda: 0)

    @pytest.mark.parametrize(
        "url", ["", "registry.db", "sqlite://", "sqlite:///:memory:", "mysql://u:secret@h/d"]
    )
    def test_only_a_sqlite_file_is_a_registry(self, tmp_path: Path, url: str) -> None:
        with pytest.raises(InvalidArgumentError) as caught:
            Registry(url, ArtifactStore(tmp_path / "a"), lambda: 0)
        assert "secret" not in str(caught.value)

    def test_a_lock_that_is_held_too_long_is_unavailable(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("trainer.registry.database.BUSY_TIMEOUT_MS", 50)
        holder = sqlite3.connect(desk.folder / "registry.db", isolation_level=None)
        with desk.open() as hurried:
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(UnavailableError, match="lock"):
                hurried.record_run({"run": "r"}, "ann")
            assert hurried.runs() == []  # reading goes on
            holder.execute("ROLLBACK")
            hurried.record_run({"run": "r"}, "ann")
        holder.close()

    @pytest.mark.parametrize("table", ["events", "releases", "approvals", "release_entries"])
    @pytest.mark.parametrize("statement", ["DELETE FROM {}", "UPDATE {} SET why = 'x'"])
    def test_history_is_append_only(self, desk: Desk, table: str, statement: str) -> None:
        desk.approved(1)
        desk.registry.release("delay", [ReleaseEntry("v1")], "bob", "x", 0)
        if table == "release_entries":
            statement = statement.replace("why", "arm")
        raw = sqlite3.connect(desk.folder / "registry.db")
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            raw.execute(statement.format(table))
        raw.close()

    def test_a_version_changes_nothing_but_its_state(self, desk: Desk) -> None:
        desk.draft(1)
        raw = sqlite3.connect(desk.folder / "registry.db")
        for statement in ("DELETE FROM versions", "UPDATE versions SET author = 'eve'"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                raw.execute(statement)
        raw.close()
