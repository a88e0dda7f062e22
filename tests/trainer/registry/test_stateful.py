"""Any order of actions by anyone, against a model in memory of what must hold.

The invariant: what runs was approved, by someone other than its author.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from headrace.errors import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    PermissionDeniedError,
)
from router import parse_plan
from tests.support.bundles import make_bundle
from trainer.registry import ArtifactStore, Registry, ReleaseEntry

LASTS = st.none() | st.integers(1, 12)
PEOPLE = st.sampled_from(["ann", "bob", "eve"])
SEEDS = range(3)


class Expected(msgspec.Struct):
    """What the model knows of one version."""

    author: str
    state: str = "draft"
    approver: str = ""
    expires_us: int | None = None


class RegistryMachine(RuleBasedStateMachine):
    """Real registry, real file; `expected` and `released` are the oracle, written independently."""

    digests = Bundle("digests")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        root = Path(self.folder.name)
        self.clock = itertools.count(1)
        self.now_us = 0
        self.url = f"sqlite:///{root}/registry.db"
        self.artifacts = ArtifactStore(root / "artifacts")
        self.registry = self.open()
        self.sources = []
        for seed in SEEDS:
            make_bundle(root / f"b{seed}", seed)
            self.sources.append(root / f"b{seed}")
        self.expected: dict[str, Expected] = {}
        self.released: list[tuple[list[tuple[str, str, float]], int | None]] = []
        self.anchor = None

    def open(self) -> Registry:
        return Registry(self.url, self.artifacts, self.tick)

    def tick(self) -> int:
        self.now_us = next(self.clock)
        return self.now_us

    def teardown(self) -> None:
        self.registry.close()
        self.folder.cleanup()

    @initialize(target=digests, author=PEOPLE)
    def first(self, author: str) -> str:
        return self.register(0, author)

    @rule(target=digests, seed=st.sampled_from(SEEDS), author=PEOPLE)
    def another(self, seed: int, author: str) -> str:
        return self.register(seed, author)

    def register(self, seed: int, author: str) -> str:
        version = self.registry.register(self.sources[seed], author, "because")
        self.expected.setdefault(version.digest, Expected(author))
        return version.digest

    @rule(digest=digests, by=PEOPLE, action=st.sampled_from(["submit", "review", "reject"]))
    def move(self, digest: str, by: str, action: str) -> None:
        known = self.expected[digest]
        way = {
            "submit": {"draft": "candidate"},
            "review": {"candidate": "in_review"},
            "reject": {"candidate": "draft", "in_review": "draft"},
        }[action]
        step = getattr(self.registry, action)
        if known.state in way:
            known.state = way[known.state]
            assert step("delay", digest, by, "because").state == known.state
        else:
            with pytest.raises(FailedPreconditionError):
                step("delay", digest, by, "because")

    @rule(digest=digests, by=PEOPLE, lasts=LASTS)
    def approve(self, digest: str, by: str, lasts: int | None) -> None:
        known = self.expected[digest]
        expires_us = None if lasts is None else self.now_us + 1 + lasts
        error: type[HeadraceError] | None = None
        if known.state != "in_review":
            error = FailedPreconditionError
        elif by == known.author:
            error = PermissionDeniedError
        if error is not None:
            with pytest.raises(error):
                self.registry.approve("delay", digest, by, "because", expires_us)
            return
        self.registry.approve("delay", digest, by, "because", expires_us)
        known.state, known.approver, known.expires_us = "approved", by, expires_us

    @rule(digest=digests, by=PEOPLE, lasts=LASTS)
    def all_the_way(self, digest: str, by: str, lasts: int | None) -> None:
        """Chance alone rarely takes three steps in a row."""
        for action, state in (("submit", "draft"), ("review", "candidate")):
            if self.expected[digest].state == state:
                self.move(digest, by, action)
        self.approve(digest, by, lasts)

    @rule(data=st.data())
    def the_same_again(self, data: st.DataObject) -> None:
        """Release or revoke what runs: chance alone rarely meets it."""
        if not self.released:
            return
        live = self.released[-1][0][0][0]
        if data.draw(st.booleans()):
            self.release(live, [], 0.5, 0)
        else:
            self.revoke(live, "eve")

    @rule(digest=digests, by=PEOPLE)
    def revoke(self, digest: str, by: str) -> None:
        known = self.expected[digest]
        runs = bool(self.released) and digest in {d for d, _, _ in self.released[-1][0]}
        if known.state == "approved" and not runs:
            self.registry.revoke("delay", digest, by, "because")
            known.state = "revoked"
        else:
            with pytest.raises(FailedPreconditionError):
                self.registry.revoke("delay", digest, by, "because")

    @rule()
    def expire(self) -> None:
        expired = {version.digest for version in self.registry.expire_due()}
        due = {digest for digest, known in self.expected.items() if self.over(known, self.now_us)}
        assert expired == due
        for digest in due:
            self.expected[digest].state = "expired"

    def over(self, known: Expected, now_us: int) -> bool:
        ends = known.expires_us
        return known.state == "approved" and ends is not None and ends <= now_us

    def may_run(self, digest: str, now_us: int) -> bool:
        known = self.expected[digest]
        return known.state == "approved" and not self.over(known, now_us)

    @rule(
        live=digests,
        others=st.lists(st.tuples(digests, st.sampled_from(["canary", "shadow"])), max_size=2),
        weight=st.sampled_from([0.1, 0.5, 1.0]),
        stale=st.sampled_from([0, 0, 0, 0, 1, -1]),
    )
    def release(self, live: str, others: list[tuple[str, str]], weight: float, stale: int) -> None:
        wanted = [(live, "live", weight), *((d, role, 1 - weight / 2) for d, role in others)]
        entries = [ReleaseEntry(*entry) for entry in wanted]  # type: ignore[arg-type]
        sequence = len(self.released) + stale
        # The clock ticks once, at the check under the lock: this is the time that it will say.
        fine = all(self.may_run(digest, self.now_us + 1) for digest, _, _ in wanted)
        if stale or not fine:
            with pytest.raises(FailedPreconditionError):
                self.registry.release("delay", entries, "bob", "because", sequence)
            return
        made = self.registry.release("delay", entries, "bob", "because", sequence)
        assert made.sequence == made.plan == len(self.released) + 1
        self.released.append((wanted, None))

    @rule(to=st.none() | st.integers(0, 9))
    def rollback(self, to: int | None) -> None:
        def origin(sequence: int) -> int:
            return self.released[sequence - 1][1] or sequence

        count = len(self.released)
        error: type[HeadraceError] | None = None
        goal = 0
        if count == 0:
            error = FailedPreconditionError
        elif to is None:
            goal = origin(count) - 1
            error = FailedPreconditionError if goal == 0 else None
        elif not 1 <= to <= count:
            error = InvalidArgumentError
        else:
            goal = to
        if error is None:
            goal = origin(goal)
            wanted = self.released[goal - 1][0]
            if not all(self.may_run(digest, self.now_us + 1) for digest, _, _ in wanted):
                error = FailedPreconditionError
        if error is not None:
            with pytest.raises(error):
                self.registry.rollback("delay", to, "bob", "because")
            return
        made = self.registry.rollback("delay", to, "bob", "because")
        assert made.back_to == goal
        self.released.append((self.released[goal - 1][0], goal))

    @rule()
    def restart(self) -> None:
        """The process goes; another opens the file and finds the chain as it was left."""
        head = self.registry.verify(self.anchor)
        self.registry.close()
        self.registry = self.open()
        assert self.registry.verify(head) == head
        self.anchor = head  # type: ignore[assignment]

    @invariant()
    def what_is_told_is_what_is_expected(self) -> None:
        if not self.expected:
            return
        told = {v.digest: (v.author, v.state) for v in self.registry.versions("delay")}
        assert told == {d: (known.author, known.state) for d, known in self.expected.items()}
        history = [
            ([(e.version, e.role, e.weight) for e in release.entries], release.back_to)
            for release in self.registry.history("delay")
        ]
        assert history == self.released

    @invariant()
    def what_runs_was_approved_by_someone_else(self) -> None:
        plan = parse_plan(json.dumps(self.registry.plan()).encode())
        assert plan.plan == len(self.released)
        assert bool(plan.models) == bool(self.released)
        for arm in (arm for model in plan.models.values() for arm in model.arms):
            version = self.registry.version("delay", arm.version)
            approvers = [approval.approver for approval in version.approvals]
            # Expired may be what ran before its approval ended; revoked never runs.
            assert version.state in ("approved", "expired")
            assert approvers == [self.expected[arm.version].approver]
            assert version.author not in approvers


RegistryMachine.TestCase.settings = settings(max_examples=10, stateful_step_count=30, deadline=None)
TestRegistry = RegistryMachine.TestCase
