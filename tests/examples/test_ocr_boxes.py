"""The pipeline's own arithmetic: regions, rectangles, order, pixels."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from scipy.spatial import ConvexHull

FOLDER = Path(__file__).parents[2] / "examples/ocr/models/read_text/1"


def module_of(name: str) -> ModuleType:
    spec = spec_from_file_location(f"ocr_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


boxes, pictures = module_of("boxes"), module_of("pictures")


def chances_of(centre, angle, sizes, shape=(200, 300)):
    """A picture of chances with one rectangle in it."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    inside = np.abs((np.stack([x, y], -1) - centre) @ axes.T) <= np.array(sizes) / 2
    return inside.all(axis=-1) * 0.9


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_regions_are_those_of_scipy(mask):
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    ends = []
    for label in range(1, count + 1):
        y, x = np.nonzero(labels == label)
        own = labels == label
        padded = np.pad(own, ((0, 0), (1, 1)))
        at_end = own & ~(padded[:, :-2] & padded[:, 2:])
        ends.append({(cx, cy) for cx, cy in zip(x, y, strict=True) if at_end[cy, cx]})
    found = [{(int(x), int(y)) for x, y in points} for points in boxes.regions(mask)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, ends))


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=3, max_size=30, unique=True
    )
)
def test_the_smallest_rectangle(corners):
    points = np.array(corners, float)
    centre, axes, sizes = boxes.rectangle(points)
    assert (np.abs((points - centre) @ axes.T) <= sizes / 2 + 1e-9).all()
    assert np.allclose(axes @ axes.T, np.eye(2))
    if np.linalg.matrix_rank(points - points[0]) < 2:
        return
    hull = points[ConvexHull(points).vertices]
    areas = []
    for along in np.roll(hull, -1, axis=0) - hull:
        one = along / np.linalg.norm(along)
        areas.append(np.prod(np.ptp(points @ np.array([one, [-one[1], one[0]]]).T, axis=0)))
    # A side of the hull, or the picture's own, carries it.
    assert sizes.prod() <= min(areas) + 1e-6
    assert sizes.prod() == pytest.approx(min(*areas, np.ptp(points, axis=0).prod()))


@pytest.mark.parametrize("points", [[(3, 4)], [(3, 4), (9, 4)], [(3, 4), (3, 9)]])
def test_of_a_point_and_a_line_too(points):
    centre, _, sizes = boxes.rectangle(np.array(points, float))
    assert np.allclose(centre, np.mean(points, axis=0))
    assert sizes.max() == np.ptp(points, axis=0).max()


@pytest.mark.parametrize("angle", [-0.6, -0.1, 0.0, 0.2, 0.7])
def test_a_box_is_grown_along_its_own_sides(angle):
    wide, high = 120.0, 20.0
    (box,) = boxes.find(chances_of((150, 100), angle, (wide, high)), (200, 300))
    growth = 2 * 1.6 * wide * high / (2 * (wide + high))
    along, down = box[1] - box[0], box[3] - box[0]
    assert np.linalg.norm(along) == pytest.approx(wide + growth, abs=3)
    assert np.linalg.norm(down) == pytest.approx(high + growth, abs=3)
    assert np.arctan2(along[1], along[0]) == pytest.approx(angle, abs=0.05)
    assert np.allclose(box.mean(axis=0), (150, 100), atol=1.5)


def test_boxes_are_in_the_pictures_pixels_and_within_it():
    (box,) = boxes.find(chances_of((20, 10), 0.0, (60, 30)), (400, 600))
    assert box.min() == 0  # it was grown over the edge
    assert box.mean(axis=0)[0] == pytest.approx(61, abs=15)


def test_what_is_faint_or_tiny_is_no_text():
    assert boxes.find(chances_of((150, 100), 0.0, (120, 20)) * 0.5, (200, 300)) == []
    assert boxes.find(chances_of((150, 100), 0.0, (120, 2)), (200, 300)) == []
    assert boxes.find(np.zeros((32, 32)), (32, 32)) == []


def test_the_order_is_that_of_reading():
    starts = [(200, 12), (10, 15), (100, 9), (5, 60), (90, 55)]
    found = boxes.in_reading_order([np.array([start] * 4) for start in starts])
    assert [tuple(box[0]) for box in found] == [(10, 15), (100, 9), (200, 12), (5, 60), (90, 55)]


def test_a_crop_is_what_lies_in_the_box():
    picture = np.random.default_rng(1).integers(0, 256, (30, 50, 3), np.uint8)
    box = np.array([(10, 5), (30, 5), (30, 15), (10, 15)])
    assert np.array_equal(pictures.crop(picture, box, 10), picture[5:15, 10:30])
    upside_down = pictures.crop(picture, np.roll(box, 2, axis=0), 10)
    assert np.array_equal(upside_down, picture[5:15, 10:30][::-1, ::-1])


def test_a_box_that_stands_is_laid_down():
    picture = np.random.default_rng(2).integers(0, 256, (50, 30, 3), np.uint8)
    box = np.array([(5, 10), (15, 10), (15, 30), (5, 30)])
    assert np.array_equal(pictures.crop(picture, box, 10), np.rot90(picture[10:30, 5:15]))


@given(st.integers(1, 9), st.integers(1, 9))
def test_a_ramp_stays_a_ramp(rows, columns):
    ramp = np.broadcast_to(np.arange(4.0)[None, :, None] * 30, (4, 4, 3)).astype(np.uint8)
    found = pictures.resize(ramp, rows, columns)
    places = np.clip((np.arange(columns) + 0.5) * 4 / columns - 0.5, 0, 3)
    assert np.allclose(found, np.broadcast_to(places[None, :, None] * 30, found.shape), atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (320, 640), (30, 4000), (4000, 3000), (736, 736)])
def test_the_detector_gets_what_it_can_halve(size):
    height, width = pictures.detected_size(*size)
    assert height % 32 == width % 32 == 0
    assert min(height, width) >= 32
    assert max(height, width) <= 2016
