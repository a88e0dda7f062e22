"""`headrace model`, `release` and `features` against a real control."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.cli.test_main import headrace
from tests.server.control.conftest import LiveControl
from tests.server.served_bundles import DEFINITIONS
from tests.support.bundles import make_bundle


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveControl]:
    live = LiveControl(tmp_path_factory.mktemp("cli"))
    yield live
    live.stop()


def run(control: LiveControl, *arguments: str) -> str:
    """Run a command that must succeed; return what it printed."""
    done = headrace(*arguments, HEADRACE_CONTROL_URL=control.client.url)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(control: LiveControl, *arguments: str) -> str:
    done = headrace(*arguments, HEADRACE_CONTROL_URL=control.client.url)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


@pytest.mark.slow
def test_a_version_from_its_folder_to_traffic_and_back(
    control: LiveControl, tmp_path: Path
) -> None:
    digests = [make_bundle(tmp_path / name, seed=name) for name in ("one", "two")]
    for number, name in enumerate(("one", "two"), start=1):
        shown = run(control, "model", "register", str(tmp_path / name), "--why", "x", "--by", "ada")
        assert shown == f"delay v{number} draft {digests[number - 1]}\n"
        version = f"v{number}"
        run(control, "model", "submit", "delay", version, "--why", "x", "--by", "ada")
        run(control, "model", "review", "delay", version, "--why", "x", "--by", "grace")
        own = ("model", "approve", "delay", version, "--why", "x", "--by", "ada")
        assert "cannot approve their own" in refused(control, *own)
        run(control, "model", "approve", "delay", version, "--why", "x", "--by", "grace")
    assert "v2       approved  ada" in run(control, "model", "list", "delay")
    assert run(control, "model", "card", "delay", digests[0][:16]) == "# delay\n\n"
    assert json.loads(run(control, "model", "show", "delay", "v1"))["digest"] == digests[0]
    go = ("release", "create", "delay", "--why", "go", "--by", "grace")
    run(control, *go, "--live", "v1")
    split = run(control, *go, "--live", "v1=0.9", "--canary", "v2=0.1")
    short = [digest.removeprefix("sha256:")[:12] for digest in digests]
    assert split == f"delay sequence 2 plan 2: a:live={short[0]} 90 %, b:canary={short[1]} 10 %\n"
    assert "no model 'nope'" in refused(control, "release", "list", "nope")
    assert "sequence" in refused(control, *go, "--live", "v2", "--expected-sequence", "1")
    run(control, "release", "rollback", "delay", "--why", "the canary pages", "--by", "grace")
    listed = run(control, "release", "list", "delay").splitlines()
    assert len(listed) == 4
    assert listed[-1].endswith("the canary pages")
    plan = json.loads(run(control, "release", "plan"))
    assert (plan["plan"], len(plan["models"]["delay"]["arms"])) == (3, 1)
    assert "it is in the current release" in refused(
        control, "model", "revoke", "delay", "v1", "--why", "x", "--by", "grace"
    )
    run(control, "model", "revoke", "delay", "v2", "--why", "worse", "--by", "grace")


def test_definitions_are_applied_listed_and_shown(control: LiveControl, tmp_path: Path) -> None:
    file = tmp_path / "definitions.py"
    file.write_bytes(DEFINITIONS)
    assert "sha256:" in run(control, "features", "apply", str(file), "--by", "ada")
    listed = run(control, "features", "list").splitlines()
    assert [line.split()[:2] for line in listed[1:]] == [
        ["StreamFeatureView", "activity"],
        ["FeatureService", "score"],
    ]
    shown = json.loads(run(control, "features", "show", "score"))
    assert shown["columns"] == ["activity:amount_count_1h", "activity:amount_mean_1h"]
    assert "activity, score" in refused(control, "features", "show", "scroe")
    file.write_text("from features import Entity\nEntity(1)\n")
    assert "line 2" in refused(control, "features", "apply", str(file), "--by", "ada")
