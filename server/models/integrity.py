"""What lies in a version's folder, before any runtime opens it: is it whole, and is it all there?

Beside the model may lie `SHA256SUMS`, as `sha256sum` writes it: then every listed file has these
bytes, and what the model reads is listed. Without it a flipped bit of a weight loads, and answers
wrongly. A tensor's data may lie in another file of the same folder, and nowhere else: onnxruntime
would follow a hard link to whatever its user can read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headrace.digest import digest_bytes, digest_file
from headrace.errors import FailedPreconditionError, InvalidArgumentError
from server.explain.trees import TREES
from server.file_words import words_in
from trainer.external_tensors import external_tensors
from trainer.plain_files import NotPlainError, open_plain

SUMS = "SHA256SUMS"
_SUMS_BYTES_MAX = 1 << 20
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")
_PARTS_MAX = 8


@dataclass(frozen=True, slots=True)
class VersionFiles:
    """What a load reads: the bytes of the model and of its external tensors, and whether the model
    has trees, which take more room in memory than in a file."""

    model_bytes: int
    external_bytes: int
    has_trees: bool


def check_folder(folder: Path, filename: str) -> VersionFiles:
    """Look at the model `filename` of a version's folder and at what it would read.

    Raises FailedPreconditionError for a file that is not what SHA256SUMS says, or that the model
    may not read.
    """
    listed = check_listed(folder, filename)
    locations, has_trees = _look_into(folder / filename)
    external = sum(_check_external(folder, location, listed) for location in sorted(locations))
    return VersionFiles((folder / filename).stat().st_size, external, has_trees)


def check_listed(folder: Path, filename: str) -> dict[str, str] | None:
    """Return the digests that SHA256SUMS of a version's folder lists, None without one.

    Raises FailedPreconditionError for a file that is not what it says.
    """
    if not (folder / SUMS).is_file():
        return None
    with (folder / SUMS).open("rb") as file:
        listed = read_sums(file.read(_SUMS_BYTES_MAX + 1))
    _check_sums(listed, filename, lambda name: _digest_of(folder / name))
    return listed


def check_files(files: dict[str, bytes], filename: str) -> VersionFiles:
    """As `check_folder`, for the files of a version that came with a request."""
    if SUMS in files:
        listed = read_sums(files[SUMS])
        _check_sums(
            listed, filename, lambda name: digest_bytes(files[name]) if name in files else None
        )
    model = files[filename]
    if _external_of(model):
        raise FailedPreconditionError(
            "a model that comes with a request has its tensors inside",
            mend="save it without external data, or put it into the repository",
        )
    return VersionFiles(len(model), 0, TREES in model)


def read_sums(data: bytes) -> dict[str, str]:
    """Return `sha256:<hex>` by path. Raises FailedPreconditionError for any other content."""
    if len(data) > _SUMS_BYTES_MAX:
        raise FailedPreconditionError("the file is too large", where=SUMS, expected=_SUMS_BYTES_MAX)
    sums = {}
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None or not _is_inside(match[2]):
            raise FailedPreconditionError(
                f"line {number} is none of sha256sum's", where=SUMS, expected="HEX  NAME"
            )
        sums[match[2]] = f"sha256:{match[1].lower()}"
    return sums


def _check_sums(
    listed: dict[str, str], filename: str, digest_of: Callable[[str], str | None]
) -> None:
    if filename not in listed:
        raise FailedPreconditionError(f"'{filename}' is not listed", where=SUMS)
    for name, expected in listed.items():
        found = digest_of(name)
        if found is None:
            raise FailedPreconditionError(f"'{name}' is not there", where=SUMS)
        if found != expected:
            raise FailedPreconditionError(
                f"'{name}' has other bytes than are listed",
                where=SUMS,
                expected=expected,
                got=found,
                mend="copy the version again",
            )


def _digest_of(path: Path) -> str | None:
    return digest_file(path) if path.is_file() else None


_LOCATION = b"location"  # the key of every external tensor


def _look_into(path: Path) -> tuple[set[str], bool]:
    """Return the locations of the external tensors, and whether the model has trees."""
    found = words_in(path, (TREES, _LOCATION))
    return _external_of(path.read_bytes()) if _LOCATION in found else set(), TREES in found


def _external_of(model: bytes) -> set[str]:
    try:
        return external_tensors(model)
    except InvalidArgumentError as error:
        raise FailedPreconditionError(error.what) from None


def _check_external(folder: Path, location: str, listed: dict[str, str] | None) -> int:
    """Return the size of a file that tensors of a model lie in."""
    shown = repr(location[:200])
    if not _is_inside(location):
        raise FailedPreconditionError(
            "a tensor's data is outside the version's folder",
            got=shown,
            mend="save the model with its data beside it",
        )
    if listed is not None and location not in listed:
        raise FailedPreconditionError(
            "a tensor's data is in a file that is not listed", where=SUMS, got=shown
        )
    try:
        with open_plain(folder, location) as file:
            return os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise FailedPreconditionError("a tensor's data is not there", got=shown) from None
    except NotPlainError:
        raise FailedPreconditionError(
            "a tensor's data is in no plain file with one name",
            got=shown,
            mend="put the file itself beside the model, no link to it",
        ) from None


def _is_inside(path: str) -> bool:
    parts = path.split("/")
    return (
        len(parts) <= _PARTS_MAX
        and not {"", ".", ".."} & set(parts)
        and not {"\\", "\0"} & set(path)
    )
