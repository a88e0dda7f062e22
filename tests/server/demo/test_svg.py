from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.demo import svg

numbers = st.floats(-1e6, 1e6)


@given(numbers, st.floats(1e-6, 1e6), st.integers(1, 12))
def test_ticks_are_round_inside_and_evenly_spaced(low: float, span: float, about: int) -> None:
    high = low + span
    found = svg.ticks(low, high, about)
    slack = span * 1e-6 + abs(low) * 1e-9
    assert all(low - slack <= tick <= high + slack for tick in found)
    assert len(found) <= about + 1
    if len(found) > 2 and span > abs(low) * 1e-6:
        steps = {round(b - a, 10 - math.floor(math.log10(span))) for a, b in zip(found, found[1:])}  # noqa: RUF007, B905
        assert max(steps) - min(steps) <= span * 1e-6
        first = f"{found[1] - found[0]:.6e}"
        assert first[0] in "125" or first.startswith("9.99")


def test_a_scale_of_one_point_maps_to_the_middle() -> None:
    assert svg.linear(3, 3, 0, 10)(3) == 5
    assert svg.ticks(3, 3) == [3]


def test_scales_map_ends_to_ends() -> None:
    assert [svg.linear(2, 4, 10, 0)(v) for v in (2, 3, 4)] == [10, 5, 0]
    log = svg.logarithmic(1, 100, 0, 10)
    assert log(1) == pytest.approx(0)
    assert log(10) == pytest.approx(5)
    assert log(100) == pytest.approx(10)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20))
def test_text_survives_as_text(words: str) -> None:
    found = ET.fromstring(svg.canvas(10, 10, words, svg.text(0, 0, words)))
    assert found.get("aria-label") == words
    assert (found[0].text or "") == words


def test_numbers_are_short() -> None:
    assert [svg.number(v) for v in (1.0, 1.04, 1.06, -0.0, 120.0)] == [
        "1", "1", "1.1", "-0", "120",
    ]  # fmt: skip
