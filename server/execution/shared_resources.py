"""Resources that all workers of a machine count together: the table in a file that they map.

Locks of the kernel say who is alone at it and who lives: those of a process that was killed are
gone with it. No lock is waited for; what is not free now is asked for again a moment later.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from headrace.errors import UnavailableError
from server.execution.resource_table import ResourceTable, table_bytes
from server.shared_table import map_table

_AGAIN_S = 0.002
_ALONE = 0  # the byte whose lock is held while something is taken; behind it one a worker
_FLOCK = "hhqqi"  # type, whence, start, length, process


class SharedResources:
    """One worker's end, at place `own` of `slots`. Raises UnavailableError while another has it."""

    def __init__(self, path: Path, slots: int, own: int) -> None:
        memory = map_table(path, table_bytes(slots))
        self._table = ResourceTable(memoryview(memory).cast("q"), slots, own)
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._again: asyncio.TimerHandle | None = None
        if not self._lock(_ALONE + 1 + own):
            os.close(self._file)
            raise UnavailableError(f"place {own} of the workers is taken", mend="start it again")
        self._table.enter()

    def take(
        self, needs: Mapping[str, int], counts: Mapping[str, int], again: Callable[[], None]
    ) -> bool:
        """Take what is needed if it is free and it is this worker's turn; else `again` is called in
        a moment."""
        taken = False
        if self._lock(_ALONE):
            try:
                taken = self._table.take(needs, counts, time.monotonic_ns(), self._lives)
            finally:
                self._unlock(_ALONE)
        if not taken and self._again is None:
            loop = asyncio.get_running_loop()
            self._again = loop.call_later(_AGAIN_S, self._try_again, again)
        return taken

    def give(self, needs: Mapping[str, int]) -> None:
        """Give back what was taken."""
        self._table.give(needs)

    def give_up(self) -> None:
        """Wait for nothing any more."""
        self._table.give_up()

    def close(self) -> None:
        """Leave it, with all that is held."""
        os.close(self._file)

    def _try_again(self, again: Callable[[], None]) -> None:
        self._again = None
        again()

    def _lock(self, byte: int) -> bool:
        # Locks of the open file, not of the process: whatever else closes the file drops none.
        wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, wanted)
        except BlockingIOError:
            return False
        return True

    def _unlock(self, byte: int) -> None:
        free = struct.pack(_FLOCK, fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0)
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, free)

    def _lives(self, slot: int) -> bool:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, _ALONE + 1 + slot, 1, 0)
        answer = fcntl.fcntl(self._file, fcntl.F_OFD_GETLK, asked)
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)
