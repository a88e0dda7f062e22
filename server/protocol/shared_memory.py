"""System shared memory: tensors that clients put into regions of /dev/shm, and outputs put there.

A region is read and written by `pread` and `pwrite`, never mapped. Its owner may make it smaller at
any time, and whoever reads a mapping behind the new end dies of SIGBUS: one client would end a
worker. And what is mapped may change between its check and its use; a copy cannot. It costs about
as much as reading the same bytes off a socket once, without the socket.

What is registered stands in a file of the data folder: a client's next request may meet another
worker of this machine. The file begins with a number that every change raises, so that it costs one
small read to know that nothing changed.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from headrace.errors import (
    AlreadyExistsError,
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnimplementedError,
)

FOLDER = Path("/dev/shm")  # noqa: S108 - it is what the protocol is about
REGIONS_MAX = 256
# Copies of inputs that live at once: a message of a few bytes may name gigabytes.
HELD_BYTES_MAX = 1 << 30
# To copy a mebibyte takes a quarter of a millisecond: longer, and it leaves the event loop.
_LEAVE_LOOP_BYTES = 1 << 20
_NAME_CHARACTERS_MAX = 255
_SIZE_MAX = 1 << 62
_FILE_BYTES_MAX = 1 << 20
# Regions that belong to others: semaphores, and what servers share with their Python models.
_RESERVED = ("sem.", "triton_python_backend_shm_region", "headrace")
_VERSION_BYTES = 8
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One registration as all workers know it.

    `device` and `inode` say which file was meant; `pid` and `fd` are the worker that took it, and
    its descriptor.
    """

    name: str
    key: str
    offset: int
    byte_size: int
    device: int
    inode: int
    pid: int
    fd: int


class Region:
    """An open region. It stays readable for requests that have it when it is unregistered."""

    def __init__(self, entry: Entry, fd: int) -> None:
        self.entry = entry
        self.fd = fd
        self._write_fd = -1
        weakref.finalize(self, os.close, fd)

    def check(self, offset: int, byte_size: int) -> None:
        """Raise InvalidArgumentError, in Triton's words, for a range that is not within it."""
        if not 0 <= offset < self.entry.byte_size:
            raise InvalidArgumentError(
                f"Invalid offset for shared memory region: '{self.entry.name}'"
            )
        if byte_size < 0 or offset + byte_size > self.entry.byte_size:
            raise InvalidArgumentError(
                f"Invalid offset + byte size for shared memory region: '{self.entry.name}'"
            )

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target`. Raises InvalidArgumentError when the region has become smaller."""
        at = self.entry.offset + offset
        while target:
            count = os.preadv(self.fd, [target], at)
            if not count:
                raise self._shrunk()
            target = target[count:]
            at += count

    def write(self, data: bytes, offset: int) -> None:
        """Put `data` there. Raises InvalidArgumentError when the region has become smaller, and
        InternalError when it cannot be written."""
        at = self.entry.offset + offset
        # A write behind the end would make it larger again; that it shrinks just now harms nobody.
        if os.fstat(self.fd).st_size < at + len(data):
            raise self._shrunk()
        rest = memoryview(data)
        try:
            fd = self._writable()
            while rest:
                count = os.pwrite(fd, rest, at)
                rest = rest[count:]
                at += count
        except OSError as error:
            raise InternalError(
                f"cannot write to shared memory region '{self.entry.name}'", got=error.strerror
            ) from None

    def _writable(self) -> int:
        """Return a descriptor to write to, of the very file that was registered: most regions hold
        inputs and are never opened so."""
        if self._write_fd < 0:
            self._write_fd = os.open(f"/proc/self/fd/{self.fd}", os.O_WRONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._write_fd)
        return self._write_fd

    def _shrunk(self) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"shared memory region '{self.entry.name}' is smaller than when it was registered",
            mend="unregister it, and register it again",
        )


class Place(NamedTuple):
    """A range of a region."""

    region: Region
    offset: int
    byte_size: int


async def write(place: Place, data: bytes) -> None:
    """Put `data` at the place. Raises what `Region.write` raises."""
    if len(data) > _LEAVE_LOOP_BYTES:
        await asyncio.to_thread(place.region.write, data, place.offset)
    else:
        place.region.write(data, place.offset)


class SharedMemory:
    """The regions of one machine's workers. `table` is the file in which they stand."""

    def __init__(self, table: Path) -> None:
        table.parent.mkdir(parents=True, exist_ok=True)
        self._table = os.open(table, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        weakref.finalize(self, os.close, self._table)
        self._version = b""
        self._entries: dict[str, Entry] = {}
        self._open: dict[str, Region] = {}
        self._held_bytes = 0

    # What clients ask of it.

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Let requests name the bytes of /dev/shm/KEY. Raises, in Triton's words,
        InvalidArgumentError, AlreadyExistsError, InternalError or ResourceExhaustedError."""
        path = _path_of(name, key)
        with self._changing() as entries:
            if name in entries:
                raise AlreadyExistsError(f"shared memory region '{name}' already in manager")
            if len(entries) >= REGIONS_MAX:
                raise ResourceExhaustedError(
                    "too many shared memory regions", expected=f"at most {REGIONS_MAX}"
                )
            fd = _opened(path, key)
            status = os.fstat(fd)
            entry = Entry(
                name, key, offset, byte_size, status.st_dev, status.st_ino, os.getpid(), fd
            )
            region = Region(entry, fd)
            if (
                not 0 <= offset <= _SIZE_MAX
                or not 0 < byte_size <= _SIZE_MAX
                or offset + byte_size > status.st_size
            ):
                raise InvalidArgumentError(
                    f"failed to register shared memory region '{name[:64]}': invalid args"
                )
            entries[name] = entry
        self._open[name] = region

    def unregister(self, name: str = "") -> None:
        """Let no request name it any more, or any; requests that have it are still answered."""
        with self._changing() as entries:
            if name:
                entries.pop(name, None)
            else:
                entries.clear()

    def status(self, name: str = "") -> list[dict[str, str | int]]:
        """Return what is registered, or one region of it. Raises NotFoundError."""
        self._refresh()
        entries = list(self._entries.values())
        if name:
            if name not in self._entries:
                raise NotFoundError(f"Unable to find system shared memory region: '{name[:64]}'")
            entries = [self._entries[name]]
        return [
            {"name": e.name, "key": e.key, "offset": e.offset, "byte_size": e.byte_size}
            for e in entries
        ]

    # What requests ask of it.

    def place(self, name: str, offset: int, byte_size: int) -> Place:
        """Return a range of a region. Raises NotFoundError or InvalidArgumentError."""
        self._refresh()
        region = self._open.get(name)
        if region is None:
            entry = self._entries.get(name)
            fd = None if entry is None else _opened_again(entry)
            if entry is None or fd is None:
                raise NotFoundError(
                    f"Unable to find shared memory region: '{name[:64]}'",
                    mend=None if entry is None else "it is gone: register it again",
                )
            self._open[name] = region = Region(entry, fd)
        region.check(offset, byte_size)
        return Place(region, offset, byte_size)

    async def read(self, place: Place) -> memoryview:
        """Return a copy of the range. Raises ResourceExhaustedError while too many copies live, and
        what `Region.read_into` raises."""
        size = place.byte_size
        if self._held_bytes + size > HELD_BYTES_MAX:
            raise ResourceExhaustedError(
                "too many bytes of shared memory are in use",
                expected=f"at most {HELD_BYTES_MAX} at once",
            )
        copy = np.empty(size, np.uint8)
        self._held_bytes += size
        # Views keep it alive: the model's feeds are some.
        weakref.finalize(copy, self._release, size)
        view = copy.data
        if size > _LEAVE_LOOP_BYTES:
            await asyncio.to_thread(place.region.read_into, view, place.offset)
        else:
            place.region.read_into(view, place.offset)
        return view

    def _release(self, size: int) -> None:
        self._held_bytes -= size

    # What all workers know.

    def _refresh(self) -> None:
        if os.pread(self._table, _VERSION_BYTES, 0) == self._version:
            return
        fcntl.flock(self._table, fcntl.LOCK_SH)
        try:
            self._load()
        finally:
            fcntl.flock(self._table, fcntl.LOCK_UN)

    def _load(self) -> None:
        data = os.pread(self._table, _FILE_BYTES_MAX, 0)
        try:
            entries = msgspec.json.decode(data[_VERSION_BYTES:] or b"[]", type=list[Entry])
        except msgspec.DecodeError:  # whoever wrote it was killed meanwhile
            entries = []
        self._version = data[:_VERSION_BYTES]
        self._entries = {entry.name: entry for entry in entries}
        self._open = {
            name: region
            for name, region in self._open.items()
            if self._entries.get(name) == region.entry
        }

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Entry]]:
        """Give the entries to change; the change stands when nothing was raised."""
        fcntl.flock(self._table, fcntl.LOCK_EX)
        try:
            self._load()
            entries = dict(self._entries)
            yield entries
            self._store(entries)
        finally:
            fcntl.flock(self._table, fcntl.LOCK_UN)

    def _store(self, entries: dict[str, Entry]) -> None:
        text = msgspec.json.encode(list(entries.values()))
        if len(text) + _VERSION_BYTES > _FILE_BYTES_MAX:
            raise ResourceExhaustedError("the names of the shared memory regions are too long")
        # The number first: who sees it waits for the lock, even if this process dies here.
        version = (int.from_bytes(self._version, "little") + 1) % (1 << 8 * _VERSION_BYTES)
        os.pwrite(self._table, version.to_bytes(_VERSION_BYTES, "little"), 0)
        os.ftruncate(self._table, _VERSION_BYTES)
        os.pwrite(self._table, text, _VERSION_BYTES)
        self._load()


def disabled() -> UnimplementedError:
    """Return the error, in Triton's words, of a server that does without."""
    return UnimplementedError(
        "Client shared memory is disabled. Start the server with '--shared-memory' to enable."
    )


def place_of(
    memory: SharedMemory | None, parameters: Mapping[str, object], tensor: str
) -> Place | None:
    """Return where the parameters of a tensor say that it is, None when they say nothing.

    Raises, in Triton's words, InvalidArgumentError for wrong ones, UnimplementedError without
    `memory`, and what `SharedMemory.place` raises.
    """
    name = parameters.get("shared_memory_region")
    numbers = []
    for key in ("shared_memory_offset", "shared_memory_byte_size"):
        value = parameters.get(key)
        if value is not None and name is None:
            raise InvalidArgumentError(
                f"'{key}' can not be specified without 'shared_memory_region' parameter for "
                f"tensor '{tensor}'"
            )
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise InvalidArgumentError(
                f"invalid value type for '{key}' parameter for tensor '{tensor}', expected "
                "int64_param."
            )
        numbers.append(value)
    if name is None:
        return None
    if not isinstance(name, str):
        raise InvalidArgumentError(
            f"invalid value type for 'shared_memory_region' parameter for tensor '{tensor}', "
            "expected string_param."
        )
    offset, byte_size = numbers
    if byte_size is None:
        raise InvalidArgumentError(
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' "
            f"parameter for tensor '{tensor}'"
        )
    if memory is None:
        raise disabled()
    return memory.place(name, offset or 0, byte_size)


def _path_of(name: str, key: str) -> Path:
    """Return the file of a key: one name within /dev/shm, and nobody else's."""
    if not name:
        raise InvalidArgumentError(
            "'region name' is necessary to register system shared memory region"
        )
    bare = key.lstrip("/")
    if (
        not bare
        or bare in {".", ".."}
        or "/" in bare
        or "\0" in bare
        or not bare.isprintable()
        or max(len(os.fsencode(bare)), len(name)) > _NAME_CHARACTERS_MAX
    ):
        raise InvalidArgumentError(
            f"cannot register shared memory region '{name[:64]}' - invalid shm key '{key[:64]}'"
        )
    for prefix in _RESERVED:
        if bare.startswith(prefix):
            raise InvalidArgumentError(
                f"cannot register shared memory region '{name[:64]}' with key '{key[:64]}' as the "
                f"key contains the reserved prefix '{prefix}'"
            )
    return FOLDER / bare


def _opened(path: Path, key: str) -> int:
    error = InternalError(f"Unable to open shared memory region: '{key[:64]}'")
    try:
        fd = os.open(path, _READ)
    except OSError:
        raise error from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise error
    return fd


def _opened_again(entry: Entry) -> int | None:
    """Return a descriptor of what another worker registered; None when it is there no more.

    Its client may have removed the name meanwhile, or given it to another file: that worker has it.
    """
    ways: tuple[Callable[[], int], ...] = (
        lambda: _opened(_path_of(entry.name, entry.key), entry.key),
        lambda: os.open(f"/proc/{entry.pid}/fd/{entry.fd}", _READ & ~os.O_NOFOLLOW),
    )
    for way in ways:
        try:
            fd = way()
        except (OSError, HeadraceError):
            continue
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) == (entry.device, entry.inode):
            return fd
        os.close(fd)
    return None
