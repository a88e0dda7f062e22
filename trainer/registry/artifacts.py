"""Content-addressed blobs in a folder: `sha256/ab/<hex>`, each written once and never changed.

A blob appears under its name whole and flushed, or not at all: temporary file, fsync, rename, fsync
of the folder. Rows are written after their blobs, so no row can name a blob that is not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path

from headrace.digest import digest_bytes
from headrace.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from trainer.bundle import (
    MANIFEST,
    MODEL,
    Bundle,
    FileEntry,
    Manifest,
    check_external,
    is_digest,
    parse_manifest,
    publish,
    read_bundle,
    sync_folder,
    sync_tree,
    write_file,
)

_CHUNK_BYTES = 1 << 20


class ArtifactStore:
    """The blobs under `root`; several processes may use one folder at once."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "sha256"
        self._drafts = root / "drafts"  # in the same file system, so that a rename is atomic
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._drafts.mkdir(exist_ok=True)

    def put_bytes(self, data: bytes, expected: str | None = None) -> str:
        """Store `data` and return its digest.

        Raises FailedPreconditionError when it is not the `expected` digest.
        """
        return self._put([data], expected)

    def put_file(self, path: Path, expected: str | None = None) -> str:
        """Store the content of a file, as `put_bytes` does."""
        with path.open("rb") as file:
            return self._put(_chunks(file), expected)

    def put_bundle(self, bundle: Bundle) -> None:
        """Store every file of `bundle`, the manifest last: where it is, the rest is too."""
        for entry in bundle.manifest.files:
            self.put_file(bundle.folder / entry.path, entry.sha256)
        self.put_file(bundle.folder / MANIFEST, bundle.digest)

    def has(self, digest: str) -> bool:
        """Return whether the blob is here. Raises InvalidArgumentError for what is no digest."""
        return self._path(digest).is_file()

    def size_bytes(self, digest: str) -> int:
        """Return the blob's size. Raises NotFoundError."""
        with self.open(digest) as file:
            return os.fstat(file.fileno()).st_size

    def open(self, digest: str) -> BufferedReader:
        """Open a blob for reading, unverified: the reader compares the digest."""
        try:
            return self._path(digest).open("rb")
        except FileNotFoundError as error:
            raise NotFoundError(f"no blob {digest}", where="artifacts") from error

    def read(self, digest: str) -> bytes:
        """Return a blob's verified bytes. Raises NotFoundError, FailedPreconditionError."""
        with self.open(digest) as file:
            data = file.read()
        if (found := digest_bytes(data)) != digest:
            raise _damaged(digest, found)
        return data

    def manifest(self, manifest_digest: str) -> Manifest:
        """Return a bundle's manifest, its own bytes verified."""
        return parse_manifest(self.read(manifest_digest))

    def missing(self, manifest_digest: str) -> list[str]:
        """Return the digests of a bundle's blobs that are not here, the manifest's own first."""
        if not self.has(manifest_digest):
            return [manifest_digest]
        files = self.manifest(manifest_digest).files
        return sorted({entry.sha256 for entry in files if not self.has(entry.sha256)})

    def verify(self, manifest_digest: str) -> Manifest:
        """Return a bundle's manifest after comparing every byte of its blobs.

        Raises NotFoundError, FailedPreconditionError for damage, InvalidArgumentError for a
        manifest that breaks the contract.
        """
        manifest = self.manifest(manifest_digest)
        for entry in manifest.files:
            if entry.path == MODEL:
                check_external(self.read(entry.sha256), {e.path for e in manifest.files})
            self._verify_blob(entry)
        return manifest

    def materialise(self, manifest_digest: str, folder: Path) -> Bundle:
        """Lay a bundle out as `folder`, whole or not at all, and return it verified.

        A `folder` that is there already is verified and returned.
        """
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=".bundle-", dir=folder.parent))
            try:
                for entry in self.manifest(manifest_digest).files:
                    self._verify_blob(entry)
                    write_file(draft, entry.path, self._path(entry.sha256))
                write_file(draft, MANIFEST, self.read(manifest_digest))
                draft.chmod(0o755)
                sync_tree(draft)
                if not folder.exists():
                    publish(draft, folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return read_bundle(folder, manifest_digest)

    def draft(self) -> BlobDraft:
        """Begin a blob that is written piece by piece."""
        return BlobDraft(self, self._drafts)

    def _put(self, chunks: Iterable[bytes], expected: str | None) -> str:
        with contextlib.closing(self.draft()) as draft:
            for chunk in chunks:
                draft.write(chunk)
            return draft.commit(expected)

    def publish(self, draft: Path, digest: str) -> None:
        """Give a finished draft its name."""
        path = self._path(digest)
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            sync_folder(path.parent.parent)
        draft.replace(path)
        sync_folder(path.parent)

    def is_sound(self, digest: str) -> bool:
        """Whether the blob is here with the right bytes; a damaged one is to be written again."""
        if not self.has(digest):
            return False
        with self.open(digest) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest.removeprefix("sha256:")

    def _verify_blob(self, entry: FileEntry) -> None:
        if self.size_bytes(entry.sha256) != entry.size:
            raise _damaged(entry.sha256, f"{self.size_bytes(entry.sha256)} bytes")
        with self.open(entry.sha256) as file:
            found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if found != entry.sha256:
            raise _damaged(entry.sha256, found)

    def _path(self, digest: str) -> Path:
        if not is_digest(digest):
            raise InvalidArgumentError(
                "not a digest",
                where="artifacts",
                expected="'sha256:' and 64 hexadecimal digits",
                got=repr(digest[:80]),
            )
        hexadecimal = digest.removeprefix("sha256:")
        return self._blobs / hexadecimal[:2] / hexadecimal


class BlobDraft:
    """A blob on its way in: `write` it, `commit` it, and `close` it whatever happened.

    Its methods may be called from one thread after the other; `close` waits for the others.
    """

    def __init__(self, store: ArtifactStore, folder: Path) -> None:
        self._store = store
        descriptor, name = tempfile.mkstemp(dir=folder)
        self._path = Path(name)
        self._out = open(descriptor, "wb")  # noqa: PTH123, SIM115  a descriptor has no path; `close`
        self._hasher = hashlib.sha256()
        self._lock = threading.Lock()

    def write(self, chunk: bytes) -> None:
        """Add bytes. Raises ValueError after `close`."""
        with self._lock:
            self._out.write(chunk)
            self._hasher.update(chunk)

    def commit(self, expected: str | None = None) -> str:
        """Store what was written and return its digest.

        Raises FailedPreconditionError when it is not the `expected` digest.
        """
        with self._lock:
            digest = f"sha256:{self._hasher.hexdigest()}"
            if expected is not None and digest != expected:
                raise FailedPreconditionError(
                    "the bytes are not those that were announced",
                    where="artifacts",
                    expected=expected,
                    got=digest,
                    mend="send the file again",
                )
            if self._store.is_sound(digest):
                return digest
            self._out.flush()
            os.fsync(self._out.fileno())
            self._path.chmod(0o444)
            self._store.publish(self._path, digest)
            return digest

    def close(self) -> None:
        """Forget it, unless it was stored."""
        with self._lock:
            self._out.close()
            self._path.unlink(missing_ok=True)


def _chunks(file: BufferedReader) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk


def _damaged(digest: str, found: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        "a blob is damaged",
        where="artifacts",
        expected=digest,
        got=found,
        mend="upload the file again: a damaged blob is replaced",
    )
