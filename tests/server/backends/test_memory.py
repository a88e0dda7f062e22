"""What a model's process and the server share: regions, tensors in memory, messages in pieces."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from server.backends.python.regions import Regions
from server.backends.python.stub import memory, messages

START = memory.HEADER_BYTES


class RegionsMachine(RuleBasedStateMachine):
    """Regions never overlap, and the first gap that is large enough is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.regions = Regions(START)
        self.used: dict[int, int] = {}

    def is_free(self, offset: int, size: int) -> bool:
        return all(offset + size <= u or u + s <= offset for u, s in self.used.items())

    @rule(size=st.integers(0, 500))
    def take(self, size: int) -> None:
        offset = self.regions.take(size)
        size = max(size, 1)
        assert offset >= START
        assert self.is_free(offset, size)
        ends = [START, *(u + s for u, s in self.used.items())]
        assert offset == min(end for end in ends if self.is_free(end, size))
        self.used[offset] = size

    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        if self.used:
            offset = data.draw(st.sampled_from(sorted(self.used)))
            del self.used[offset]
            assert self.regions.give(offset)
        assert not self.regions.give(START - 1)

    @invariant()
    def counts(self) -> None:
        assert len(self.regions) == len(self.used)


TestRegions = RegionsMachine.TestCase

NUMBERS = [dtype for name, dtype in memory.DTYPES.items() if name != "BYTES"]
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> np.ndarray:  # type: ignore[type-arg]
    shape = draw(SHAPES)
    if draw(st.integers(0, 3)) == 0:
        array = np.empty(shape, object)
        for index in np.ndindex(*shape):
            array[index] = draw(st.binary(max_size=5))
        return array
    array = draw(arrays(draw(st.sampled_from(NUMBERS)), shape))
    return array.T if draw(st.booleans()) else array


@pytest.fixture
def shared() -> tuple[memory.Memory, memory.Memory]:
    """One memory, as its writer has it and as its reader has."""
    descriptor = memory.new_memory()
    return memory.Memory(descriptor), memory.Memory(os.dup(descriptor))


@given(many=st.lists(tensors(), max_size=4), offset=st.integers(1, 100))
def test_tensors_are_read_as_they_were_written(
    many: list[np.ndarray],  # type: ignore[type-arg]
    offset: int,
) -> None:
    descriptor = memory.new_memory()
    writer, reader = memory.Memory(descriptor), memory.Memory(descriptor)
    named = [("t", memory.datatype_of(array), array) for array in many]
    raws, size = memory.sizes_of(named)
    start = offset * memory.ALIGNMENT
    writer.grow(start + size)
    places = memory.lay_out(writer, start, named, raws)
    assert all(place.offset % memory.ALIGNMENT == 0 for place in places)
    for place, array in zip(places, many, strict=True):
        found = memory.array_of(place, reader)
        assert found.shape == array.shape
        assert found.dtype == array.dtype
        assert found.tobytes() == array.tobytes() or found.tolist() == array.tolist()
    os.close(descriptor)


def test_memory_grows_for_both_and_cannot_be_cut_short(
    shared: tuple[memory.Memory, memory.Memory],
) -> None:
    writer, reader = shared
    size = 3 * memory.INITIAL_BYTES
    writer.grow(size)
    writer.write(size - 4, b"last")
    assert bytes(reader.read(size - 4, 4)) == b"last"
    with pytest.raises(OSError, match="not permitted"):
        os.truncate(f"/proc/self/fd/{writer._descriptor}", 1)
    writer.count = 7
    writer.give_back()
    assert reader.count == 7
    assert bytes(reader.read(size - 4, 4)) == bytes(4)


@pytest.mark.parametrize(
    "place",
    [
        messages.Place("t", "FP32", (2,), 0, 4),
        messages.Place("t", "FP32", (-1,), 0, 4),
        messages.Place("t", "FP99", (1,), 0, 4),
        messages.Place("t", "FP32", (1 << 40,), 0, 4 << 40),
        messages.Place("t", "FP32", (1,), -4, 4),
        messages.Place("t", "BYTES", (1,), 0, 3),
        messages.Place("t", "BYTES", (0,), 0, 4),
        messages.Place("t", "BYTES", (1 << 40,), 0, 4),
    ],
)
def test_places_that_there_are_not(
    shared: tuple[memory.Memory, memory.Memory], place: messages.Place
) -> None:
    with pytest.raises(ValueError, match=r"tensor|place"):
        memory.array_of(place, shared[1])


def test_arrays_that_are_no_tensors() -> None:
    with pytest.raises(ValueError, match="complex128"):
        memory.datatype_of(np.zeros(1, complex))
    assert memory.datatype_of(np.array(["text"])) == "BYTES"
    assert memory.datatype_of(np.zeros(1, ">f4")) == "FP32"


@given(
    numbers=st.lists(st.integers(0, 2**63 - 1), max_size=6),
    cuts=st.lists(st.integers(0, 200), max_size=6),
)
def test_messages_are_found_wherever_they_are_cut(numbers: list[int], cuts: list[int]) -> None:
    sent = [messages.Cancel(number) for number in numbers]
    data = b"".join(map(messages.framed, sent))
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    frames = messages.Frames()
    found = [
        messages.to_model.decode(frame)
        for start, end in itertools.pairwise(places)
        for frame in frames.take(data[start:end])
    ]
    assert found == sent


def test_a_message_that_is_too_long() -> None:
    frames = messages.Frames()
    with pytest.raises(ValueError, match="too long"):
        frames.take(messages.LENGTH.pack(messages.MESSAGE_BYTES_MAX + 1) + b"x")
