"""The names of classes: `label_filename` of an output, one label a line."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from headrace.errors import FailedPreconditionError

_BYTES_MAX = 16 << 20


def read_labels(folder: Path, config: Any) -> dict[str, list[str]]:
    """Return the labels of each output of a ModelConfig that has some.

    The files lie in the model's folder. Raises FailedPreconditionError for one that does not, or
    that is no text.
    """
    return {
        output.name: _read(folder, output.label_filename)
        for output in config.output
        if output.label_filename
    }


def _read(folder: Path, name: str) -> list[str]:
    path = PurePosixPath(name)
    # A request may bring the configuration: it must not choose among the machine's files.
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise FailedPreconditionError(
            "label_filename is not a file of the model's folder", where="config.pbtxt"
        )
    try:
        with (folder / path).open("rb") as file:
            data = file.read(_BYTES_MAX + 1)
    except OSError:
        raise FailedPreconditionError(
            f"unable to open label file for reading: {name[:64]}", where="config.pbtxt"
        ) from None
    if len(data) > _BYTES_MAX:
        raise FailedPreconditionError(
            f"the label file {name[:64]} is too large", expected=f"at most {_BYTES_MAX} bytes"
        )
    try:
        return data.decode().splitlines()
    except UnicodeDecodeError:
        raise FailedPreconditionError(f"the label file {name[:64]} is not UTF-8") from None
