"""`headrace features snapshot`: a file out of history, and clear refusals."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from features.snapshots.file import open_snapshot
from headrace.errors import FailedPreconditionError, InvalidArgumentError
from headrace.times import format_us
from server.embedded.taken import taken_rows
from tests.features.snapshots.test_taking import UNTIL_US, VIEWS, events
from tests.server.cli.test_main import headrace
from tests.server.serving import write_plain_version, write_version
from tests.support.ride_history import history_of
from tests.support.rides import SCHEMA_IDS, asked, ingesting, rides
from tests.support.valkey import LiveValkey


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    write_version(root)
    write_plain_version(root)
    history_of(root / "history", events())
    return root


@pytest.mark.slow
def test_the_command_writes_a_file_and_says_what_is_in_it(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "features.snapshot"
    moment = format_us(UNTIL_US)
    done = headrace(
        *("features", "snapshot", str(root / "tips-1"), str(path)),
        *("--history", str(root / "history"), "--until", moment),
    )
    assert done.returncode == 0, done.stderr
    snapshot = open_snapshot(path)
    shown = done.stdout.splitlines()[1].split()
    assert shown == [str(path), str(len(snapshot)), moment, snapshot.digest]
    assert set(snapshot.schema_ids) == {view.hash for view in VIEWS}


@pytest.mark.slow
async def test_a_store_is_named_by_its_url(root: Path, valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as rig:
        offset = await rig.log.push([rides((UNTIL_US, 1, "Oslo", 12, 20.5))])
        await rig.read(asked((1, "Oslo", 2.0)), UNTIL_US, offset)
        taken = await asyncio.to_thread(taken_rows, root / "tips-1", valkey.url, root, None, None)
    assert len(taken.rows) == 3  # the checkpoint, a driver's state and a pair's
    assert set(taken.schema_ids.values()) <= set(SCHEMA_IDS.values())


def test_until_may_be_microseconds_or_text_and_is_now_by_default(root: Path) -> None:
    bundle, history = root / "tips-1", root / "history"
    by_text = taken_rows(bundle, "none", root, history, format_us(UNTIL_US))
    by_number = taken_rows(bundle, "none", root, history, str(UNTIL_US))
    assert by_text == by_number
    assert by_text.taken_at_us == UNTIL_US
    assert taken_rows(bundle, "none", root, history, None).taken_at_us > UNTIL_US


def test_what_cannot_be_taken_says_why(root: Path) -> None:
    tips, history = root / "tips-1", root / "history"
    with pytest.raises(FailedPreconditionError, match="needs no snapshot"):
        taken_rows(root / "plain-3", "none", root, history, None)
    with pytest.raises(FailedPreconditionError, match="there is no store here"):
        taken_rows(tips, "embedded", root, None, None)
    with pytest.raises(InvalidArgumentError, match="--until is for --history"):
        taken_rows(tips, "none", root, None, "2024-01-01T00:00:00Z")
    for text in ("noon", "--5", "²", "9" * 5000):
        with pytest.raises(InvalidArgumentError, match="--until: not a time"):
            taken_rows(tips, "none", root, history, text)
