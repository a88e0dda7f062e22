"""Blobs: whole under their digest or absent, and never believed without a look."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headrace.digest import digest_bytes
from headrace.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from tests.support.bundles import make_bundle
from trainer.bundle import read_bundle
from trainer.registry import ArtifactStore

NOTHING = "sha256:" + "0" * 64


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def blob_path(store_root: Path, digest: str) -> Path:
    hexadecimal = digest.removeprefix("sha256:")
    return store_root / "sha256" / hexadecimal[:2] / hexadecimal


def test_what_is_put_is_read_back(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"two")
    digests = [store.put_bytes(b"one"), store.put_file(tmp_path / "file"), store.put_bytes(b"")]
    assert digests == [digest_bytes(content) for content in (b"one", b"two", b"")]
    assert [store.read(digest) for digest in digests] == [b"one", b"two", b""]
    assert [store.size_bytes(digest) for digest in digests] == [3, 3, 0]
    assert all(store.has(digest) for digest in digests)
    with store.open(digests[0]) as blob:
        assert blob.read() == b"one"


def test_putting_twice_keeps_one(store: ArtifactStore, tmp_path: Path) -> None:
    for _ in range(2):
        store.put_bytes(b"one", digest_bytes(b"one"))
    files = [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]
    assert files == [blob_path(tmp_path / "artifacts", digest_bytes(b"one"))]


def test_other_bytes_than_announced_are_not_kept(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="announced"):
        store.put_bytes(b"one", NOTHING)
    assert not [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]


def test_what_is_not_there_is_not_found(store: ArtifactStore) -> None:
    assert not store.has(NOTHING)
    for look in (store.read, store.size_bytes, store.open):
        with pytest.raises(NotFoundError, match=NOTHING):
            look(NOTHING)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "sha256:../x", "sha256:" + "A" * 64])
def test_only_a_digest_leads_into_the_folder(store: ArtifactStore, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="not a digest"):
        store.has(name)


def test_a_damaged_blob_is_noticed_and_replaced(store: ArtifactStore, tmp_path: Path) -> None:
    digest = store.put_bytes(b"one")
    path = blob_path(tmp_path / "artifacts", digest)
    path.chmod(0o644)
    path.write_bytes(b"0ne")
    with pytest.raises(FailedPreconditionError, match="damaged"):
        store.read(digest)
    store.put_bytes(b"one")
    assert store.read(digest) == b"one"


def test_a_bundle_goes_in_and_comes_out(store: ArtifactStore, tmp_path: Path) -> None:
    digest = make_bundle(tmp_path / "b")
    bundle = read_bundle(tmp_path / "b")
    assert store.missing(digest) == [digest]
    store.put_bytes((tmp_path / "b" / "manifest.json").read_bytes())
    assert store.missing(digest) == sorted(entry.sha256 for entry in bundle.manifest.files)
    store.put_bundle(bundle)
    assert store.missing(digest) == []
    assert store.verify(digest) == store.manifest(digest) == bundle.manifest
    for _ in range(2):  # made, then found
        out = store.materialise(digest, tmp_path / "out" / "b")
        assert (out.digest, out.manifest) == (bundle.digest, bundle.manifest)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]


@pytest.mark.parametrize("change", ["flip", "grow", "remove"])
@pytest.mark.parametrize("which", ["manifest.json", "model.onnx", "card.md"])
def test_a_bundle_with_a_bad_blob_is_neither_verified_nor_laid_out(
    store: ArtifactStore, tmp_path: Path, which: str, change: str
) -> None:
    digest = make_bundle(tmp_path / "b")
    store.put_bundle(read_bundle(tmp_path / "b"))
    path = blob_path(tmp_path / "artifacts", digest_bytes((tmp_path / "b" / which).read_bytes()))
    content = bytearray(path.read_bytes())
    path.chmod(0o644)
    if change == "flip":
        content[3] ^= 1
        path.write_bytes(content)
    elif change == "grow":
        path.write_bytes(content + b" ")
    else:
        path.unlink()
    with pytest.raises((FailedPreconditionError, NotFoundError)):
        store.verify(digest)
    with pytest.raises((FailedPreconditionError, NotFoundError)):
        store.materialise(digest, tmp_path / "out" / "b")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_was_tampered_with_is_not_returned(
    store: ArtifactStore, tmp_path: Path
) -> None:
    digest = make_bundle(tmp_path / "b")
    store.put_bundle(read_bundle(tmp_path / "b"))
    store.materialise(digest, tmp_path / "out")
    (tmp_path / "out" / "card.md").write_bytes(b"# dElay\n")
    with pytest.raises(FailedPreconditionError, match="other bytes"):
        store.materialise(digest, tmp_path / "out")


WRITER = """
import sys
from pathlib import Path
from trainer.registry import ArtifactStore
store = ArtifactStore(Path(sys.argv[1]))
for i in range(10**9):
    print(store.put_bytes(b"%d" % i * 5000), flush=True)
"""


def test_a_killed_writer_leaves_no_half_blob(tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    told = set()
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            told |= {writer.stdout.readline().strip() for _ in range(20)}
            writer.kill()
    blobs = [path for path in (root / "sha256").rglob("*") if path.is_file()]
    assert {f"sha256:{path.name}" for path in blobs} >= told
    for path in blobs:
        assert digest_bytes(path.read_bytes()) == f"sha256:{path.name}"
