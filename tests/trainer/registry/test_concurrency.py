"""Threads and processes on one registry: one winner, no loss, no half state after a kill."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from headrace.errors import FailedPreconditionError
from tests.trainer.registry.conftest import Desk
from trainer.registry import ArtifactStore, Registry, ReleaseEntry, database

RELEASER = """
import sys
from pathlib import Path
from headrace.errors import FailedPreconditionError
from trainer.registry import ArtifactStore, Registry, ReleaseEntry

root, name = Path(sys.argv[1]), sys.argv[2]
url, artifacts = f"sqlite:///{root}/registry.db", ArtifactStore(root / "artifacts")
with Registry(url, artifacts, lambda: 5) as registry:
    print("ready", flush=True)
    sys.stdin.readline()
    won = lost = 0
    while won + lost < 30:
        now = registry.current("delay")
        sequence = 0 if now is None else now.sequence
        try:
            why = f"after {sequence}"
            made = registry.release("delay", [ReleaseEntry("v1")], name, why, sequence)
            assert made.sequence == sequence + 1
            won += 1
        except FailedPreconditionError:
            lost += 1
print(won, lost)
"""


def test_processes_that_release_at_once_never_overwrite_one_another(desk: Desk) -> None:
    desk.approved(1)
    names = [f"process-{number}" for number in range(4)]
    command = [sys.executable, "-c", RELEASER, str(desk.folder)]
    processes = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in names
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    told = [process.communicate("go\n")[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    history = desk.registry.history("delay")
    for name, (won, _) in zip(names, told, strict=True):
        assert sum(release.by == name for release in history) == int(won)
    assert [release.sequence for release in history] == list(range(1, len(history) + 1))
    assert [release.plan for release in history] == list(range(1, len(history) + 1))
    assert [release.why for release in history] == [f"after {i}" for i in range(len(history))]
    desk.registry.verify()


def test_of_many_threads_with_one_sequence_one_releases(desk: Desk) -> None:
    desk.approved(1)
    together = threading.Barrier(8)
    outcomes: list[str] = []

    def release(number: int) -> None:
        together.wait()
        try:
            desk.registry.release("delay", [ReleaseEntry("v1")], f"thread-{number}", "x", 0)
            outcomes.append("won")
        except FailedPreconditionError:
            outcomes.append("lost")

    threads = [threading.Thread(target=release, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 7 + ["won"]
    assert len(desk.registry.history("delay")) == 1


def test_threads_that_register_the_same_bytes_get_one_version(desk: Desk) -> None:
    together = threading.Barrier(6)
    desk.draft("other", "fraud")
    digests: list[str] = []

    def register() -> None:
        together.wait()
        folder = desk.folder / "bundles" / "fraud-other"
        digests.append(desk.registry.register(folder, "ann", "x").digest)

    threads = [threading.Thread(target=register) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 6
    assert len(set(digests)) == 1
    assert len(desk.registry.versions("fraud")) == 1
    desk.registry.verify()


OPENER = """
import sys
from pathlib import Path
from trainer.registry import ArtifactStore, Registry
root = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(5):
    url = f"sqlite:///{root}/{number}.db"
    with Registry(url, ArtifactStore(root / "a"), lambda: 5) as registry:
        registry.record_run({"run": sys.argv[2]}, "ann")
"""


def test_processes_that_make_one_registry_at_once_all_find_it(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, str(tmp_path), str(number)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(4)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.stdin is not None
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0] * 4
    for number in range(5):
        url = f"sqlite:///{tmp_path}/{number}.db"
        with Registry(url, ArtifactStore(tmp_path / "a"), lambda: 5) as registry:
            assert {run.run for run in registry.runs()} == {"0", "1", "2", "3"}
            registry.verify()


WRITER = """
import itertools, sys
from pathlib import Path
from tests.support.bundles import make_bundle
from trainer.registry import ArtifactStore, Registry, ReleaseEntry

root, start = Path(sys.argv[1]), sys.argv[2]
clock = itertools.count(1)
url, artifacts = f"sqlite:///{root}/registry.db", ArtifactStore(root / "artifacts")
with Registry(url, artifacts, lambda: next(clock)) as registry:
    for number in itertools.count():
        folder = root / f"{start}-{number}"
        make_bundle(folder, f"{start}-{number}")
        digest = registry.register(folder, "ann", "x").digest
        registry.submit("delay", digest, "ann", "x")
        registry.review("delay", digest, "bob", "x")
        registry.approve("delay", digest, "bob", "x")
        now = registry.current("delay")
        sequence = 0 if now is None else now.sequence
        made = registry.release("delay", [ReleaseEntry(digest)], "bob", "x", sequence)
        print(made.sequence, digest, flush=True)
"""


def test_a_killed_process_loses_nothing_that_it_told_and_leaves_no_half_state(
    desk: Desk,
) -> None:
    told: list[list[str]] = []
    root = Path(__file__).resolve().parents[3]
    for start in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(desk.folder), str(start)],
            cwd=root, stdout=subprocess.PIPE, text=True,
        ) as writer:  # fmt: skip
            assert writer.stdout is not None
            told += [writer.stdout.readline().split() for _ in range(3 + start)]
            writer.kill()
        desk.registry.verify()
    history = desk.registry.history("delay")
    kept = {str(release.sequence): release.entries[0].version for release in history}
    assert len(told) == 12
    assert all(kept[sequence] == digest for sequence, digest in told)


def test_who_finds_a_new_registry_locked_tries_again(tmp_path: Path) -> None:
    """The journal cannot be changed while another one makes the registry."""
    file = tmp_path / "registry.db"
    maker, finder = (sqlite3.connect(file, isolation_level=None) for _ in range(2))
    finder.execute("PRAGMA busy_timeout = 1")
    maker.execute("BEGIN EXCLUSIVE")
    clock = SimpleNamespace(sleep=lambda _: maker.execute("ROLLBACK"))
    with patch.object(database, "time", clock):  # not for other threads of this process
        database._use_wal(finder)
    assert finder.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    maker.close()
    finder.close()
