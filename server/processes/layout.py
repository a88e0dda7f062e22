"""The data folder of one machine (CONTRACTS §2): where things lie, who holds it, who runs in it."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import tempfile
import time
from pathlib import Path
from types import TracebackType

import msgspec

from headrace.errors import AlreadyExistsError, UnavailableError
from headrace.files import whole_file

# sun_path of Linux holds 108 bytes with its final zero; asyncio and Valkey both fail above it.
_SOCKET_PATH_BYTES_MAX = 107


class DataDir:
    """Paths under `--data-dir`; makes the folders that the supervisor owns."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.run = self.root / "run"

    def create(self) -> DataDir:
        """Make the folder. Raises UnavailableError when it cannot be written."""
        try:
            self.run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnavailableError(
                f"cannot write the data folder {self.root}: {error.strerror}",
                mend="give another one with --data-dir",
            ) from None
        return self

    @property
    def plan(self) -> Path:
        """The last release plan that this machine has seen."""
        return self.run / "plan.json"

    @property
    def children(self) -> Path:
        """The supervisor's record of its children: who to replace after it was killed."""
        return self.run / "children.json"

    @property
    def collector_socket(self) -> Path:
        """The collector's unix socket."""
        return socket_path(self.run, "collector.sock")

    @property
    def connections(self) -> Path:
        """The table of who has how many connections, which all workers map."""
        return self.run / "connections.table"

    @property
    def resources(self) -> Path:
        """The table of who holds how much of which resource, which all workers map."""
        return self.run / "resources.table"

    def worker_socket(self, slot: int) -> Path:
        """The unix socket on which a worker takes connections that others accepted."""
        return socket_path(self.run, f"worker-{slot}.sock")

    def metrics_socket(self, slot: int) -> Path:
        """The unix socket on which a worker tells what it counted."""
        return socket_path(self.run, f"metrics-{slot}.sock")

    @property
    def models(self) -> Path:
        """Which models of the repository requests have loaded and unloaded since the start."""
        return self.run / "models.json"

    @property
    def model_files(self) -> Path:
        """Files that came with requests to load, named by their digest."""
        return self.run / "model-files"

    @property
    def regions(self) -> Path:
        """The shared-memory regions that clients have registered, which all workers read."""
        return self.run / "shared-memory.table"

    @property
    def repositories(self) -> Path:
        """Copies of model repositories that lie elsewhere, and outlive a start."""
        return self.root / "repositories"

    @property
    def valkey_socket(self) -> Path:
        """The embedded Valkey's unix socket."""
        return socket_path(self.run, "valkey.sock")


def socket_path(folder: Path, name: str) -> Path:
    """Return `folder/name`, or a short stand-in for it where that is too long for a unix socket.

    The stand-in lies in a folder of the temporary directory that only this user can enter, named by
    the digest of the real one, so that every process comes to the same path.
    """
    path = folder / name
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES_MAX:
        return path
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"headrace-{os.getuid()}-{digest}"
    short.mkdir(mode=0o700, exist_ok=True)
    owner = short.stat()
    if owner.st_uid != os.getuid() or owner.st_mode & 0o077:
        raise UnavailableError(
            f"{short} belongs to someone else, and {path} is too long for a unix socket",
            mend="choose a shorter --data-dir",
        )
    return short / name


class Lock:
    """One holder at a time of a role in a data folder; the kernel lets go when the holder dies."""

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self._what = what
        self._fd = -1

    def __enter__(self) -> Lock:
        """Take the lock. Raises AlreadyExistsError that names the holder's pid."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode().strip() or "unknown"
            os.close(self._fd)
            raise AlreadyExistsError(
                f"{self._what} already runs in {self._path.parent.parent} (pid {holder})",
                mend="stop it, or give another folder with --data-dir",
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go."""
        os.close(self._fd)


class ChildRecord(msgspec.Struct, frozen=True):
    """A running child. The start time tells it from a later process that got the same pid."""

    role: str
    pid: int
    start_ticks: int


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None when it runs no more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name in brackets may hold anything, brackets and spaces too: fields start after
    # it.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that after a crash it is either the old one or the new one, whole."""
    with whole_file(path) as draft:
        draft.write_bytes(data)


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file so that a reader finds the old one or the new one, whole.

    For what a crash of the machine may cost: nothing waits for the disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk is not to be filled with halves
        raise


def is_full(error: OSError) -> bool:
    """Return whether the disk, or this user's share of it, has no room."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_children(path: Path, children: list[ChildRecord]) -> None:
    """Record who runs. After a power cut none of them runs."""
    replace_file(path, msgspec.json.encode(children))


def replace_orphans(path: Path, grace_s: float) -> list[ChildRecord]:
    """End the children that a killed supervisor left behind and return those that still ran.

    They get SIGTERM (they drain), then SIGKILL after `grace_s`. Only a process whose start time is
    the recorded one is touched. Blocks until they are gone.
    """
    try:
        recorded = msgspec.json.decode(path.read_bytes(), type=list[ChildRecord])
    except FileNotFoundError:
        return []
    except msgspec.DecodeError:
        recorded = []  # torn by a crash of the machine, after which none of them runs
    alive = [c for c in recorded if _runs(c)]
    deadline = time.monotonic() + grace_s
    for child in alive:
        _signal(child, signal.SIGTERM)
    while any(map(_runs, alive)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for child in alive:
        _signal(child, signal.SIGKILL)
    while any(map(_runs, alive)):
        time.sleep(0.02)
    path.unlink(missing_ok=True)
    return alive


def _runs(child: ChildRecord) -> bool:
    return start_ticks(child.pid) == child.start_ticks


def _signal(child: ChildRecord, number: signal.Signals) -> None:
    if _runs(child):
        os.kill(child.pid, number)
