"""Floats as text: the digits of Python's `repr`, in the form of the server's other JSON."""

from __future__ import annotations

import math
import struct

import msgspec
import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from numba import njit

from server.protocol.float_text import SPARE_BYTES, TEXT_BYTES_MAX, put_float


@njit
def _write(words):  # type: ignore[no-untyped-def]
    out = np.full(words.size * (TEXT_BYTES_MAX + 1) + SPARE_BYTES, 0, np.uint8)
    at = 0
    for word in words:
        at = put_float(out, at, word)
        out[at] = 10
        at += 1
    return out[:at]


def texts(values: np.ndarray) -> list[str]:
    written: str = _write(values.view(np.int64)).tobytes().decode()
    return written.split("\n")[:-1]


def digits(text: str) -> str:
    """The significant digits: what is shortest, whatever the form."""
    return text.lower().partition("e")[0].replace(".", "").strip("-0")


def check(values: np.ndarray) -> None:
    found = texts(values)
    wanted = msgspec.json.encode(values.tolist()).decode()[1:-1].split(",")
    assert found == wanted
    for value, text in zip(values.tolist(), found, strict=True):
        assert struct.pack("<d", float(text)) == struct.pack("<d", value)
        assert digits(text) == digits(repr(value))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50))
def test_any_bits(words: list[int]) -> None:
    values = np.array(words).view(np.float64)
    check(values[np.isfinite(values)]) if np.isfinite(values).any() else None


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
@example([0.0, -0.0, 5e-324, 2.2250738585072014e-308, 2.225073858507201e-308])
@example([1.7976931348623157e308, 9007199254740993.0, 1e15, 1e16, 9999999999999998.0, 1e22, 1e23])
@example([1e-4, 1e-5, 1.5e-5, 1e-6, 9.999e-6, 0.1, 0.3, 1 / 3, 123456.5, 1234567.25, -12.5])
def test_any_float(values: list[float]) -> None:
    check(np.array(values))


def test_every_power_of_two_and_of_ten_and_its_neighbours() -> None:
    powers = np.concatenate([2.0 ** np.arange(-1074, 1024), 10.0 ** np.arange(-323, 309)])
    with np.errstate(over="ignore"):
        near = np.concatenate([powers, np.nextafter(powers, 0), np.nextafter(powers, math.inf)])
    check(near[np.isfinite(near)])


def test_many_that_people_send() -> None:
    rng = np.random.default_rng(4)
    check(rng.normal(size=20_000) * 100)
    check(np.round(rng.normal(size=20_000) * 1000, 3))
    check(rng.integers(-(10**17), 10**17, 20_000).astype(np.float64))


def test_what_is_not_finite_is_not_written() -> None:
    assert texts(np.array([math.nan, math.inf, -math.inf, 1.0])) == ["", "", "", "1.0"]
