"""Boxes round text, from the detector's chance of each pixel to be text.

The method is that of differentiable binarization (Liao et al., 2020): regions above a threshold,
the smallest rectangle round each, grown to the text that the detector was taught to shrink.
"""

import numpy as np

TEXT_ABOVE = 0.3  # a pixel's chance
BOX_MIN = 0.5  # mean chance in a box
GROWTH = 1.6  # distance of growth, in areas by perimeters
SIDE_MIN = 3.0  # of what is found, in the detector's pixels
SAME_LINE = 10.0  # how far boxes of a line start below each other, in the picture's pixels
BOXES_MAX = 1000


def find(chances, shape):
    """Return the boxes of a picture of this shape, in the order in which they are read.

    `chances` (height, width) may have another size. A box is four corners (x, y) in the picture's
    pixels, from the upper left on clockwise.
    """
    found = []
    scale = np.array([shape[1] / chances.shape[1], shape[0] / chances.shape[0]])
    for points in regions(chances > TEXT_ABOVE)[:BOXES_MAX]:
        centre, axes, sizes = rectangle(points)
        if sizes.min() < SIDE_MIN or mean_in(chances, centre, axes, sizes) < BOX_MIN:
            continue
        sizes = sizes + 2 * GROWTH * sizes.prod() / (2 * sizes.sum())
        corners = centre + (CORNERS * sizes / 2) @ axes
        found.append(np.clip(np.round(corners * scale), 0, [shape[1] - 1, shape[0] - 1]))
    return in_reading_order(found)


CORNERS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])


def regions(mask):
    """Return the points (x, y) at the ends of the rows of each connected region, diagonals too."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]  # behind the last pixel
    parents = list(range(len(rows)))

    def root(run):
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    above = 0  # the first run that may touch the next one
    for run in range(len(rows)):
        while rows[above] < rows[run] - 1 or (
            rows[above] == rows[run] - 1 and ends[above] < starts[run]
        ):
            above += 1
        other = above
        while rows[other] == rows[run] - 1 and starts[other] <= ends[run]:
            parents[root(run)] = root(other)
            other += 1
    found = {}
    for run in range(len(rows)):
        found.setdefault(root(run), []).append(run)
    return [
        np.concatenate(
            [np.stack([x, rows[runs]], axis=1) for x in (starts[runs], ends[runs] - 1)]
        ).astype(float)
        for runs in found.values()
    ]


def hull(points):
    """Return the corners of the convex hull (Andrew's monotone chain)."""
    points = np.unique(points, axis=0).tolist()
    chain = []
    for way in (points, points[::-1]):
        half = []
        for x, y in way:
            while len(half) > 1:
                (ax, ay), (bx, by) = half[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                half.pop()
            half.append((x, y))
        chain += half[:-1]
    return np.array(chain or points, float)


def rectangle(points):
    """Return centre, axes (along the text, then down) and sizes of the smallest rectangle.

    One of its sides lies on a side of the hull. The first axis is the one that lies flatter.
    """
    corners = hull(points)
    along = np.roll(corners, -1, axis=0) - corners
    angles = np.append(np.arctan2(along[:, 1], along[:, 0]), 0.0)
    angles = (angles + np.pi / 4) % (np.pi / 2) - np.pi / 4
    cosines, sines = np.cos(angles), np.sin(angles)
    axes = np.stack([np.stack([cosines, sines], 1), np.stack([-sines, cosines], 1)], axis=1)
    places = np.einsum("nij,kj->nik", axes, corners)
    low, high = places.min(axis=2), places.max(axis=2)
    best = (high - low).prod(axis=1).argmin()
    return ((low + high)[best] / 2) @ axes[best], axes[best], (high - low)[best]


def mean_in(chances, centre, axes, sizes):
    """Return the mean chance of the pixels in a rectangle."""
    reach = np.abs(axes.T) @ sizes / 2
    last = np.array([chances.shape[1] - 1, chances.shape[0] - 1])
    left, top = np.clip(np.floor(centre - reach), 0, last).astype(int)
    right, bottom = np.clip(np.ceil(centre + reach), 0, last).astype(int)
    y, x = np.mgrid[top : bottom + 1, left : right + 1]
    offsets = np.abs((np.stack([x, y], axis=-1) - centre) @ axes.T)
    return chances[top : bottom + 1, left : right + 1][(offsets <= sizes / 2).all(axis=-1)].mean()


def in_reading_order(found):
    """Sort from top to bottom, and within a line from left to right."""
    lines = []
    for box in sorted(found, key=lambda box: box[0][1]):
        if lines and box[0][1] - lines[-1][0][0][1] < SAME_LINE:
            lines[-1].append(box)
        else:
            lines.append([box])
    return [box for line in lines for box in sorted(line, key=lambda box: box[0][0])]
