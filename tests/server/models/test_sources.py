"""Repositories that lie elsewhere: what moves, what is seen, and what a full disk costs."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import FailedPreconditionError, InternalError, UnavailableError
from server.execution.threads import RunThreads
from server.models.control import ModelControl
from server.models.repository import ModelRepository
from server.models.sources import Mirror
from server.models.urls import check_url, is_url
from tests.server.onnx_models import add_model, mlp_model

fsspec = pytest.importorskip("fsspec")


class Bucket:
    """An object store in memory, which counts what is fetched from it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        self.url = url
        self.files = fsspec.filesystem("memory")
        self.fetched: list[str] = []
        self.failing: Exception | None = None
        self.during = lambda: None
        real = type(self.files).get_file

        def get_file(files: Any, remote: str, local: str, **options: Any) -> Any:
            self.fetched.append(remote.removeprefix("/bucket/models/"))
            if self.failing is not None:
                Path(local).write_bytes(b"half")
                raise self.failing
            result = real(files, remote, local, **options)
            self.during()
            return result

        monkeypatch.setattr(type(self.files), "get_file", get_file)

    def put(self, path: str, data: bytes) -> None:
        self.files.pipe_file(f"/bucket/models/{path}", data)

    def remove(self, path: str) -> None:
        self.files.rm(f"/bucket/models/{path}", recursive=True)

    def moved(self) -> list[str]:
        moved, self.fetched = sorted(self.fetched), []
        return moved


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    bucket = Bucket(monkeypatch, "memory://bucket/models")
    bucket.put("add/1/model.onnx", add_model())
    bucket.put("add/config.pbtxt", b"max_batch_size: 8")
    bucket.put("mlp/1/model.onnx", mlp_model())
    yield bucket
    bucket.files.store.clear()


@pytest.fixture
def executor() -> Iterator[RunThreads]:
    with RunThreads(2, 1) as executor:
        yield executor


def tree(root: Path) -> set[str]:
    return {
        os.path.relpath(Path(place, name), root)
        for place, _, names in os.walk(root, followlinks=True)
        for name in names
    }


def test_only_what_changed_moves(bucket: Bucket, tmp_path: Path) -> None:
    mirror = Mirror(bucket.url, tmp_path)
    mirror.sync(None)
    files = {"add/1/model.onnx", "add/config.pbtxt", "mlp/1/model.onnx"}
    assert tree(mirror.root) == files
    assert set(bucket.moved()) == files
    mirror.sync(None)
    Mirror(bucket.url, tmp_path).sync(None)  # another worker
    assert bucket.moved() == []
    bucket.put("add/config.pbtxt", b"max_batch_size: 16")
    mirror.sync(None)
    assert bucket.moved() == ["add/config.pbtxt"]
    assert (mirror.root / "add" / "config.pbtxt").read_bytes() == b"max_batch_size: 16"
    bucket.put("add/1/labels.txt", b"a")
    bucket.put("add/2/model.onnx", add_model())
    mirror.sync(None)
    assert bucket.moved() == ["add/1/labels.txt", "add/2/model.onnx"]
    bucket.remove("mlp")
    bucket.remove("add/1")
    mirror.sync(None)
    assert bucket.moved() == []
    assert tree(mirror.root) == {"add/2/model.onnx", "add/config.pbtxt"}


def test_what_changes_while_it_is_fetched_is_not_seen(bucket: Bucket, tmp_path: Path) -> None:
    mirror = Mirror(bucket.url, tmp_path)
    mirror.sync(None)
    before = (mirror.root / "add" / "1" / "model.onnx").read_bytes()
    bucket.put("add/1/model.onnx", b"new")
    bucket.during = lambda: bucket.put("add/1/model.onnx", b"newer")
    with pytest.raises(UnavailableError, match="model 'add' cannot be fetched"):
        mirror.sync({"add"})
    assert (mirror.root / "add" / "1" / "model.onnx").read_bytes() == before
    bucket.during = lambda: None
    mirror.sync(None)
    assert (mirror.root / "add" / "1" / "model.onnx").read_bytes() == b"newer"


def test_a_disk_that_is_full_leaves_what_was_and_no_halves(bucket: Bucket, tmp_path: Path) -> None:
    mirror = Mirror(bucket.url, tmp_path)
    mirror.sync(None)
    before = tree(tmp_path)
    bucket.put("add/1/model.onnx", add_model("N"))
    bucket.failing = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UnavailableError, match=r"a disk that is full.*serves on") as caught:
        mirror.sync({"add"})
    assert str(tmp_path) not in caught.value.message
    assert tree(tmp_path) == before
    mirror.sync(None)  # of all: the others go on
    bucket.failing = None
    mirror.sync({"add"})
    assert (mirror.root / "add" / "1" / "model.onnx").read_bytes() == add_model("N")


def test_names_that_lead_elsewhere_are_passed_over(bucket: Bucket, tmp_path: Path) -> None:
    for path in ("../evil", "add/../../evil", "add/.hidden", ".git/config", "a\\b/1/model.onnx",
                 "deep/" + "a/" * 20 + "b"):  # fmt: skip
        bucket.files.store[f"/bucket/models/{path}"] = bucket.files.store[
            "/bucket/models/add/config.pbtxt"
        ]
    mirror = Mirror(bucket.url, tmp_path)
    mirror.sync(None)
    assert tree(mirror.root) == {"add/1/model.onnx", "add/config.pbtxt", "mlp/1/model.onnx"}


def test_old_copies_are_removed_after_a_while(bucket: Bucket, tmp_path: Path) -> None:
    mirror = Mirror(bucket.url, tmp_path)
    mirror.sync(None)
    loading = (mirror.root / "add" / "1").resolve()
    bucket.put("add/1/model.onnx", add_model("N"))
    mirror.sync(None)
    assert loading.is_dir()  # by a worker, perhaps
    store = loading.parent
    os.utime(loading, (0, 0))
    mirror.sync(None)
    assert not loading.exists()
    names = {path.name.removesuffix(".tags") for path in store.iterdir()}
    assert names == {path.name for path in store.iterdir() if path.is_dir()}


def test_a_draft_of_a_process_that_was_killed_is_no_hindrance(
    bucket: Bucket, tmp_path: Path
) -> None:
    mirror = Mirror(bucket.url, tmp_path)
    bucket.failing = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        mirror.sync(None)
    bucket.failing = None
    mirror.sync(None)
    for digest in [path.name for path in (tmp_path).glob("*/store/*") if path.is_dir()]:
        (next(tmp_path.glob("*/store")) / f".{digest}").mkdir()
    bucket.put("add/1/model.onnx", add_model("N"))
    mirror.sync(None)
    assert (mirror.root / "add" / "1" / "model.onnx").read_bytes() == add_model("N")


def test_workers_sync_one_after_another(bucket: Bucket, tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=Mirror(bucket.url, tmp_path).sync, args=(None,)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bucket.moved()) == 3
    bucket.put("mlp/2/model.onnx", mlp_model())
    Mirror(bucket.url, tmp_path).sync(None, fresh_s=3600.0)
    assert bucket.moved() == []  # one has looked just now


def test_a_source_that_is_gone(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="there is no such model repository"):
        Mirror("memory://nowhere/models", tmp_path).start(None)
    Mirror(bucket.url, tmp_path).start(None)
    bucket.files.store.clear()
    bucket.files.pseudo_dirs[:] = [""]
    mirror = Mirror(bucket.url, tmp_path)
    mirror.start(None)  # with what was fetched
    assert "mlp/1/model.onnx" in tree(mirror.root)
    with pytest.raises(UnavailableError):
        mirror.sync(None)
    assert "mlp/1/model.onnx" in tree(mirror.root)


async def test_an_explicit_load_fetches_the_model(
    bucket: Bucket, tmp_path: Path, executor: RunThreads
) -> None:
    mirror = Mirror(bucket.url, tmp_path)
    repository = ModelRepository(mirror.root, executor)
    control = ModelControl(repository, "explicit", at_start=["mlp"], sources=[mirror])
    await control.start()
    assert bucket.moved() == ["mlp/1/model.onnx"]
    assert {entry.name: entry.state for entry in repository.index()} == {"add": "", "mlp": "READY"}
    await control.load("add")
    assert repository.get("add").max_batch_size == 8
    assert bucket.moved() == ["add/1/model.onnx", "add/config.pbtxt"]
    bucket.put("add/config.pbtxt", b"max_batch_size: 16")
    await control.load("add")
    assert repository.get("add").max_batch_size == 16
    bucket.failing = OSError(errno.EIO, "broken")
    bucket.put("add/config.pbtxt", b"max_batch_size: 32")
    with pytest.raises(UnavailableError, match="model 'add' cannot be fetched"):
        await control.load("add")
    assert repository.get("add").max_batch_size == 16
    with pytest.raises(InternalError, match="failed to poll"):
        await control.load("nowhere")


async def test_polling_follows_the_bucket(
    bucket: Bucket, tmp_path: Path, executor: RunThreads
) -> None:
    mirror = Mirror(bucket.url, tmp_path)
    repository = ModelRepository(mirror.root, executor)
    control = ModelControl(repository, "poll", poll_s=0.0, sources=[mirror])
    await control.start()
    await control.stop()
    before = repository.get("mlp")
    await control.poll()
    assert repository.get("mlp") is before
    bucket.put("mlp/2/model.onnx", mlp_model(seed=5))
    bucket.remove("add")
    await control.poll()
    assert repository.get("mlp").version == "2"
    assert [model.name for model in repository.models()] == ["mlp"]
    bucket.put("mlp/3/model.onnx", b"no model")
    await control.poll()
    assert repository.get("mlp").version == "2"
    assert "mlp" in repository.failing()


def test_a_folder_may_be_a_source_too(tmp_path: Path) -> None:
    """By time and size; here as file://."""
    (tmp_path / "there" / "add" / "1").mkdir(parents=True)
    model = tmp_path / "there" / "add" / "1" / "model.onnx"
    model.write_bytes(b"one")
    mirror = Mirror(f"file://{tmp_path}/there", tmp_path / "here")
    mirror.sync(None)
    model.write_bytes(b"three")
    mirror.sync(None)
    assert (mirror.root / "add" / "1" / "model.onnx").read_bytes() == b"three"
    assert model.stat().st_nlink == 1


def test_urls_and_who_reads_them() -> None:
    assert [is_url(text) for text in ("s3://a/b", "models", "/a", "./a:b")] == [
        True, False, False, False,
    ]  # fmt: skip
    check_url("memory://x")
    with pytest.raises(FailedPreconditionError, match="no library reads nosuch://"):
        check_url("nosuch://x")
    with pytest.raises(FailedPreconditionError, match="holds a password") as caught:
        check_url("ftp://me:secret@host/models")
    assert "secret" not in caught.value.message
