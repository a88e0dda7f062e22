"""A bundle: the folder that is one version of a model. Its manifest's digest is its identity.

Nothing in a bundle is ever unpickled. A folder is read by descriptors that follow no link, every
file must be listed, be a plain file with one name, and have the listed size and digest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import msgspec

from headrace.digest import digest_bytes
from headrace.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from trainer.external_tensors import external_tensors
from trainer.manifest import (
    DEFINITIONS,
    FILES_MAX,
    MANIFEST,
    MANIFEST_BYTES_MAX,
    MODEL,
    Decision,
    FeatureServiceRef,
    FileEntry,
    Golden,
    Lineage,
    Manifest,
    Metric,
    Runtime,
    Signature,
    TensorSpec,
    check_path,
    encode_manifest,
    is_digest,
    parse_manifest,
)
from trainer.plain_files import NotPlainError, open_plain

__all__ = [
    "DEFINITIONS",
    "MANIFEST",
    "MODEL",
    "Bundle",
    "Decision",
    "FeatureServiceRef",
    "FileEntry",
    "Golden",
    "Lineage",
    "Manifest",
    "Metric",
    "Runtime",
    "Signature",
    "TensorSpec",
    "check_external",
    "encode_manifest",
    "is_digest",
    "parse_manifest",
    "publish",
    "read_bundle",
    "sync_folder",
    "sync_tree",
    "write_bundle",
    "write_file",
]

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every byte was verified when it was read."""

    folder: Path
    digest: str
    manifest: Manifest

    def read(self, path: str) -> bytes:
        """Return the bytes of a listed file, verified again: these are the bytes to load.

        Raises NotFoundError for a file that is not listed and FailedPreconditionError when it was
        changed after the bundle was read.
        """
        for entry in self.manifest.files:
            if entry.path == path:
                return _read_entry(self.folder, entry)
        raise NotFoundError(f"no file {path!r}", where=_place(self.folder))


def write_bundle(folder: Path, manifest: Manifest, contents: Mapping[str, bytes | Path]) -> str:
    """Write `contents` (bytes, or files to copy) and the manifest as `folder`; return the digest.

    `manifest.files` is empty and filled in here. The folder appears whole and on disk, or not at
    all. Raises AlreadyExistsError when it is there, InvalidArgumentError for a bad manifest.
    """
    if manifest.files:
        raise InvalidArgumentError(
            "files are filled in by write_bundle", where=f"{MANIFEST}: files"
        )
    for path in contents:
        check_path(path)
    if os.path.lexists(folder):
        raise _exists(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The draft lies beside its goal: a rename is atomic inside one file system only.
    draft = Path(tempfile.mkdtemp(prefix=".bundle-", dir=folder.parent))
    try:
        entries = [write_file(draft, path, contents[path]) for path in sorted(contents)]
        encoded = encode_manifest(msgspec.structs.replace(manifest, files=entries))
        model = next(entry for entry in entries if entry.path == MODEL)
        check_external(_read_entry(draft, model), {entry.path for entry in entries})
        write_file(draft, MANIFEST, encoded)
        draft.chmod(0o755)  # mkdtemp's 0700 would hide it from the workers' user
        sync_tree(draft)
        publish(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return digest_bytes(encoded)


def read_bundle(folder: Path, expected: str | None = None) -> Bundle:
    """Return the bundle in `folder` after verifying every byte of it.

    `expected` is the digest that it must have. Raises NotFoundError for a missing folder or file,
    InvalidArgumentError for a manifest that breaks the contract, FailedPreconditionError for
    anything that differs from the manifest: bytes, size, an unlisted file, a link.
    """
    place = _place(folder)
    if not folder.is_dir():
        raise NotFoundError("no such bundle", where=place, mend="check the folder's name")
    with _open_file(folder, MANIFEST) as file:
        data = file.read(MANIFEST_BYTES_MAX + 1)
    digest = digest_bytes(data)
    if expected is not None and digest != expected:
        raise FailedPreconditionError(
            "this is another bundle", where=place, expected=expected, got=digest
        )
    manifest = parse_manifest(data)
    listed = {entry.path for entry in manifest.files} | {MANIFEST}
    for path in _walk(folder):
        if path not in listed:
            raise FailedPreconditionError(
                f"file {path!r} is not in the manifest", where=place, mend="remove it"
            )
    for entry in manifest.files:
        if entry.path == MODEL:
            check_external(_read_entry(folder, entry), listed)
            continue
        with _open_file(folder, entry.path, entry.size) as file:
            found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if found != entry.sha256:
            raise _changed(entry, found, place)
    return Bundle(folder, digest, manifest)


def write_file(folder: Path, path: str, content: bytes | Path) -> FileEntry:
    """Write `content` (bytes, or a file to copy) beneath `folder`, flushed; return its entry."""
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    hasher, size = hashlib.sha256(), 0
    with target.open("xb") as out:
        for chunk in _chunks(content):
            hasher.update(chunk)
            size += out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    return FileEntry(path, size, f"sha256:{hasher.hexdigest()}")


def check_external(model: bytes, listed: set[str]) -> None:
    """Raise InvalidArgumentError when the ONNX bytes `model` would read an unlisted file."""
    for location in sorted(external_tensors(model)):
        if location not in listed:
            raise InvalidArgumentError(
                "a tensor's data is in a file that the manifest does not list",
                where=MODEL,
                got=repr(location[:200]),
                mend="list the file, or save the model with its tensors inside",
            )


def sync_tree(folder: Path) -> None:
    """Flush the names in `folder` and beneath it to the disk; its files were flushed before."""
    for root, _, _ in os.walk(folder):
        sync_folder(Path(root))


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(draft: Path, folder: Path) -> None:
    """Give the finished `draft` its name at once. Raises AlreadyExistsError when it is taken."""
    try:
        draft.rename(folder)
    except OSError as error:
        if os.path.lexists(folder):
            raise _exists(folder) from error
        raise
    sync_folder(folder.parent)


def _chunks(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            yield chunk


def _walk(folder: Path) -> Iterator[str]:
    """Yield the path of every file, refusing what is neither a file nor a folder."""
    found = 0
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            found += 1
            path = (Path(root) / name).relative_to(folder).as_posix()
            if found > 4 * FILES_MAX:
                raise FailedPreconditionError(
                    "too many files", where=_place(folder), expected=f"at most {FILES_MAX}"
                )
            if (Path(root) / name).is_symlink():
                raise _not_plain(folder, path)
            if name in files:
                yield path


@contextmanager
def _open_file(folder: Path, path: str, size: int | None = None) -> Iterator[BufferedReader]:
    """Open a plain file of `size` bytes beneath `folder`, following no link on the way."""
    try:
        opened = open_plain(folder, path)
    except FileNotFoundError as error:
        raise NotFoundError(f"file {path!r} is missing", where=_place(folder)) from error
    except NotPlainError as error:
        raise _not_plain(folder, path) from error
    with opened as file:
        found = os.fstat(file.fileno()).st_size
        if size is not None and found != size:
            raise FailedPreconditionError(
                f"file {path!r} has another size than the manifest says",
                where=_place(folder),
                expected=size,
                got=found,
            )
        yield file


def _read_entry(folder: Path, entry: FileEntry) -> bytes:
    with _open_file(folder, entry.path, entry.size) as file:
        data = file.read()
    if (digest := digest_bytes(data)) != entry.sha256:
        raise _changed(entry, digest, _place(folder))
    return data


def _place(folder: Path) -> str:
    return f"bundle {folder.name!r}"  # the name alone: no path of the machine reaches a client


def _exists(folder: Path) -> AlreadyExistsError:
    return AlreadyExistsError("it is there already", where=_place(folder), mend="use another name")


def _not_plain(folder: Path, path: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{path!r} is no plain file with one name",
        where=_place(folder),
        mend="a bundle holds no links, pipes or devices: copy the bytes",
    )


def _changed(entry: FileEntry, digest: str, place: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"file {entry.path!r} has other bytes than the manifest says",
        where=place,
        expected=entry.sha256,
        got=digest,
        mend="fetch or build the bundle again",
    )
