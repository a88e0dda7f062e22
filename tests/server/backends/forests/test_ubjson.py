"""UBJSON against a writer of it, and against whatever else bytes may be."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from server.backends.forests.ubjson import is_ubjson, read_ubjson

TYPES = {"i": "b", "U": "B", "I": "h", "l": "i", "L": "q", "d": "f", "D": "d"}
ARRAYS = {"i": ">i1", "U": ">u1", "I": ">i2", "l": ">i4", "L": ">i8", "d": ">f4", "D": ">f8"}


def number(marker: str, value: float) -> bytes:
    return marker.encode() + struct.pack(f">{TYPES[marker]}", value)


def written(value: Any, counted: bool) -> bytes:
    if value is None or isinstance(value, bool):
        return {None: b"Z", True: b"T", False: b"F"}[value]
    if isinstance(value, int):
        fits = (each for each in "iUIlL" if _fits(each, value))
        return number(next(fits), value)
    if isinstance(value, float):
        return number("D", value)
    if isinstance(value, str):
        return b"S" + text(value)
    if isinstance(value, np.ndarray):
        marker = next(key for key, kind in ARRAYS.items() if np.dtype(kind) == value.dtype)
        return b"[$" + marker.encode() + b"#" + number("L", len(value)) + value.tobytes()
    end = b"" if counted else (b"]" if isinstance(value, list) else b"}")
    count = b"#" + number("l", len(value)) if counted else b""
    if isinstance(value, list):
        return b"[" + count + b"".join(written(each, counted) for each in value) + end
    parts = (text(key) + written(each, counted) for key, each in value.items())
    return b"{" + count + b"".join(parts) + end


def _fits(marker: str, value: int) -> bool:
    limits = np.iinfo(ARRAYS[marker])
    return bool(limits.min <= value <= limits.max)


def text(value: str) -> bytes:
    data = value.encode()
    return number("L", len(data)) + data


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other, equal_nan=True)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other) and type(one) is type(other)


TYPED = st.sampled_from(list(ARRAYS.values())).flatmap(
    lambda kind: hnp.arrays(kind, st.integers(0, 4))
)
WHOLE = st.integers(-(2**63), 2**63 - 1)
NAMES = st.text(max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | WHOLE | st.floats(allow_nan=False) | NAMES | TYPED,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(VALUES, st.booleans())
def test_what_is_written_is_read(value: Any, counted: bool) -> None:
    data = written(value, counted)
    assert same(value, read_ubjson(data))
    for end in range(len(data)):
        with pytest.raises(ValueError):
            read_ubjson(data[:end])


@settings(max_examples=500, deadline=None)
@given(VALUES, st.data())
def test_any_bytes_are_read_or_refused(value: Any, data: st.DataObject) -> None:
    changed = bytearray(written(value, data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed)))
        changed[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.binary(max_size=2) | st.sampled_from([b"[", b"{", b"$", b"#", b"]", b"}", b"L"])
        )
    try:
        read_ubjson(bytes(changed))
    except ValueError:
        return


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[" * 10_000,
        b"[#L" + b"\x7f" + b"\xff" * 7,  # a count of 2⁶³ values
        b"[$d#L" + b"\x7f" + b"\xff" * 7,
        b"[$Z#L" + b"\x00" * 7 + b"\x10",  # values that take no bytes
        b"[$[#i\x01",
        b"[$di\x01",
        b"[#i\xff",
        b"[#S",
        b"Si\xff",
        b"Si\x01\xff",
        b"N",
        b"ZZ",
    ],
)
def test_what_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        read_ubjson(data)


def test_an_object_of_one_type() -> None:
    assert read_ubjson(b"{$i#i\x02i\x01a\x05i\x01b\x06") == {"a": 5, "b": 6}


def test_it_is_told_from_json() -> None:
    assert is_ubjson(b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner{")
    for other in (b'{"learner": 1}', b"{}", b'{ "a"', b"", b"binf"):
        assert not is_ubjson(other)
