"""Files of a folder that is not ours: opened by descriptors that follow no link.

A link, or a second name of a file, lets a folder hold what whoever wrote it could not read.
"""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not hold us up


class NotPlainError(Exception):
    """It is no plain file with one name."""


def open_plain(folder: Path, path: str) -> BufferedReader:
    """Open the file at `path` (its parts joined by `/`) beneath `folder`.

    Raises FileNotFoundError, and NotPlainError for a link on the way, a file with a second name,
    and what is no file at all. The parts must be names: `..` is not looked at here.
    """
    *parents, name = path.split("/")
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parents:
            inner = os.open(part, _READ | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = inner
        descriptor = os.open(name, _READ, dir_fd=at)
    except FileNotFoundError:
        raise
    except OSError as error:  # ELOOP, ENOTDIR: a link, or no folder where one is named
        raise NotPlainError from error
    finally:
        os.close(at)
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
        os.close(descriptor)
        raise NotPlainError
    return open(descriptor, "rb")  # noqa: PTH123  a descriptor has no path
