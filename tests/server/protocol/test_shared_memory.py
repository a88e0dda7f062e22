"""Shared memory: what may be registered, what is read and written, and what others do meanwhile."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory as Segment
from pathlib import Path

import numpy as np
import pytest

from headrace.errors import (
    AlreadyExistsError,
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from server.protocol import shared_memory
from server.protocol.shared_memory import FOLDER, SharedMemory, write

SIZE = 4096


@pytest.fixture
def memory(tmp_path: Path) -> SharedMemory:
    return SharedMemory(tmp_path / "run" / "regions")


@pytest.fixture
def segment() -> Iterator[Segment]:
    """A region of a client's, with a name that only this test has."""
    segment = Segment(f"test-{secrets.token_hex(8)}", create=True, size=SIZE)
    yield segment
    segment.close()
    if (FOLDER / segment.name).exists():
        segment.unlink()


async def test_what_a_client_wrote_is_read_and_what_is_written_it_sees(
    memory: SharedMemory, segment: Segment
) -> None:
    segment.buf[10:14] = b"abcd"
    memory.register("r", f"/{segment.name}", 8, 100)
    assert bytes(await memory.read(memory.place("r", 2, 4))) == b"abcd"
    memory.place("r", 92, 8).region.write(b"12345678", 92)
    assert bytes(segment.buf[100:108]) == b"12345678"


async def test_a_copy_does_not_change_with_the_region(
    memory: SharedMemory, segment: Segment
) -> None:
    memory.register("r", segment.name, 0, SIZE)
    copy = await memory.read(memory.place("r", 0, 4))
    segment.buf[0:4] = b"zzzz"
    assert bytes(copy) == bytes(4)


def test_status_lists_what_is_registered(memory: SharedMemory, segment: Segment) -> None:
    assert memory.status() == []
    memory.register("r", segment.name, 16, 32)
    entry = {"name": "r", "key": segment.name, "offset": 16, "byte_size": 32}
    assert memory.status() == memory.status("r") == [entry]
    with pytest.raises(NotFoundError, match="Unable to find system shared memory region: 'x'"):
        memory.status("x")


def test_a_name_is_registered_once(memory: SharedMemory, segment: Segment) -> None:
    memory.register("r", segment.name, 0, 8)
    with pytest.raises(AlreadyExistsError, match="shared memory region 'r' already in manager"):
        memory.register("r", segment.name, 0, 8)
    memory.unregister("r")
    memory.unregister("r")  # as Triton: what is not there is gone
    memory.register("r", segment.name, 0, 8)
    memory.unregister()
    with pytest.raises(NotFoundError, match="Unable to find shared memory region: 'r'"):
        memory.place("r", 0, 1)


@pytest.mark.parametrize(
    ("offset", "byte_size"),
    [(0, SIZE + 1), (1, SIZE), (SIZE, 1), (-1, 2), (0, 0), (0, -1), (1 << 63, 1 << 63)],
)
def test_a_region_is_within_its_file(
    memory: SharedMemory, segment: Segment, offset: int, byte_size: int
) -> None:
    with pytest.raises(InvalidArgumentError, match="failed to register shared memory region 'r'"):
        memory.register("r", segment.name, offset, byte_size)
    assert memory.status() == []


@pytest.mark.parametrize(
    ("offset", "byte_size", "text"),
    [
        (100, 1, "Invalid offset for"), (-1, 1, "Invalid offset for"),
        (99, 2, "Invalid offset \\+ byte size"), (0, 101, "Invalid offset \\+ byte size"),
        (0, -1, "Invalid offset \\+ byte size"), (0, 1 << 64, "Invalid offset \\+ byte size"),
    ],
)  # fmt: skip
def test_a_tensor_is_within_its_region(
    memory: SharedMemory, segment: Segment, offset: int, byte_size: int, text: str
) -> None:
    memory.register("r", segment.name, 0, 100)
    with pytest.raises(InvalidArgumentError, match=text):
        memory.place("r", offset, byte_size)


@pytest.mark.parametrize(
    "key",
    ["", "/", "..", "/..", "//../x", "../../etc/passwd", "/a/b", "a\0b", "a\nb", "x" * 256,
     "/sem.x", "sem.y", "/triton_python_backend_shm_region_1", "headrace-z"],
)  # fmt: skip
def test_no_key_leaves_the_folder_or_names_what_others_own(memory: SharedMemory, key: str) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot register shared memory region 'r'"):
        memory.register("r", key, 0, 1)


def test_links_folders_and_what_is_not_there_are_refused(
    memory: SharedMemory, tmp_path: Path
) -> None:
    name = f"test-{secrets.token_hex(8)}"
    path = FOLDER / name
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")

    def refused() -> None:
        with pytest.raises(InternalError, match=f"Unable to open shared memory region: '{name}'"):
            memory.register("r", name, 0, 1)

    refused()
    path.symlink_to(secret)
    try:
        refused()
    finally:
        path.unlink()
    path.mkdir()
    try:
        refused()
    finally:
        path.rmdir()
    os.mkfifo(path)
    try:
        refused()  # and does not wait for who would write
    finally:
        path.unlink()


async def test_a_region_that_shrank_is_an_error_and_no_signal(
    memory: SharedMemory, segment: Segment
) -> None:
    memory.register("r", segment.name, 0, SIZE)
    place = memory.place("r", 0, SIZE)
    os.truncate(FOLDER / segment.name, 100)
    assert bytes(await memory.read(memory.place("r", 0, 100))) == bytes(100)
    for attempt in (
        memory.read(place),
        memory.read(memory.place("r", 50, 100)),
        write(place, bytes(200)),
    ):
        with pytest.raises(InvalidArgumentError, match="smaller than when it was registered"):
            await attempt
    assert (FOLDER / segment.name).stat().st_size == 100


async def test_requests_that_have_a_region_keep_it(memory: SharedMemory, segment: Segment) -> None:
    memory.register("r", segment.name, 0, 8)
    place = memory.place("r", 0, 4)
    memory.unregister("r")
    segment.unlink()
    segment.buf[0:4] = b"kept"
    assert bytes(await memory.read(place)) == b"kept"
    place.region.write(b"too!", 4)
    assert bytes(segment.buf[:8]) == b"kepttoo!"


async def test_all_workers_know_what_one_was_told(tmp_path: Path, segment: Segment) -> None:
    one, other = (SharedMemory(tmp_path / "regions") for _ in range(2))
    segment.buf[:4] = b"both"
    one.register("r", segment.name, 0, 8)
    assert bytes(await other.read(other.place("r", 0, 4))) == b"both"
    assert other.status() == one.status()
    with pytest.raises(AlreadyExistsError):
        other.register("r", segment.name, 0, 8)
    other.unregister()
    with pytest.raises(NotFoundError):
        one.place("r", 0, 4)


async def test_a_name_that_means_another_file_now_is_not_mistaken(
    tmp_path: Path, segment: Segment
) -> None:
    one, other = (SharedMemory(tmp_path / "regions") for _ in range(2))
    segment.buf[:4] = b"old!"
    one.register("r", segment.name, 0, 8)
    name = segment.name
    segment.unlink()
    newer = Segment(name, create=True, size=SIZE)
    try:
        newer.buf[:4] = b"new!"
        # What was registered is what is read, by whomever.
        assert bytes(await one.read(one.place("r", 0, 4))) == b"old!"
        assert bytes(await other.read(other.place("r", 0, 4))) == b"old!"
        other.unregister("r")
        other.register("r", name, 0, 8)
        assert bytes(await one.read(one.place("r", 0, 4))) == b"new!"
    finally:
        newer.close()


def test_a_region_whose_worker_and_name_are_gone_is_to_be_registered_again(
    tmp_path: Path, segment: Segment
) -> None:
    one, other = (SharedMemory(tmp_path / "regions") for _ in range(2))
    one.register("r", segment.name, 0, 8)
    segment.unlink()
    del one
    with pytest.raises(NotFoundError, match="'r'; it is gone: register it again"):
        other.place("r", 0, 4)


def test_a_torn_table_is_an_empty_one(tmp_path: Path, segment: Segment) -> None:
    table = tmp_path / "regions"
    memory = SharedMemory(table)
    memory.register("r", segment.name, 0, 8)
    table.write_bytes(b"\xff" * 8 + b'[["r"')
    assert memory.status() == []
    memory.register("r", segment.name, 0, 8)
    assert len(memory.status()) == 1


async def test_regions_and_copies_are_bounded(
    memory: SharedMemory, segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "REGIONS_MAX", 2)
    for name in ("a", "b"):
        memory.register(name, segment.name, 0, SIZE)
    with pytest.raises(ResourceExhaustedError, match="too many shared memory regions"):
        memory.register("c", segment.name, 0, SIZE)
    monkeypatch.setattr(shared_memory, "HELD_BYTES_MAX", SIZE + 1)
    place = memory.place("a", 0, SIZE)
    held = np.frombuffer(await memory.read(place), np.uint8)[1:]
    with pytest.raises(ResourceExhaustedError, match="too many bytes of shared memory"):
        await memory.read(place)
    del held
    await memory.read(place)


async def test_large_tensors_are_copied_outside_of_the_loop(memory: SharedMemory) -> None:
    segment = Segment(f"test-{secrets.token_hex(8)}", create=True, size=8 << 20)
    try:
        numbers = np.arange(1 << 19, dtype=np.int64)
        segment.buf[: numbers.nbytes] = numbers.tobytes()
        memory.register("r", segment.name, 0, 8 << 20)
        place = memory.place("r", 0, numbers.nbytes)
        assert np.array_equal(np.frombuffer(await memory.read(place), np.int64), numbers)
        await write(memory.place("r", numbers.nbytes, numbers.nbytes), numbers.tobytes())
        again = np.array(segment.buf[numbers.nbytes : 2 * numbers.nbytes])
        assert again.tobytes() == numbers.tobytes()
        os.truncate(FOLDER / segment.name, 100)
        with pytest.raises(InvalidArgumentError, match="smaller than when it was registered"):
            await memory.read(place)
    finally:
        segment.close()
        segment.unlink()


def test_descriptors_are_given_back(memory: SharedMemory, segment: Segment) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    for _ in range(20):
        memory.register("r", segment.name, 0, 8)
        memory.place("r", 0, 8).region.write(b"x", 0)
        memory.unregister("r")
        with pytest.raises(HeadraceError):
            memory.register("r", segment.name, 0, SIZE + 1)
    assert count() == before
