"""Pictures (height, width, 3) of bytes: resized, cut out, made ready for a graph."""

import numpy as np

SHORT_SIDE_MIN = 736  # text of a smaller picture is too small for the detector
LONG_SIDE_MAX = 2000
MULTIPLE = 32  # the detector halves a picture five times
CROP_WIDTH_MAX = 3200


def detected_size(height, width):
    """Return the height and width in which a picture's text is looked for."""
    wanted = max(SHORT_SIDE_MIN / min(height, width), 1.0)
    scale = min(wanted, LONG_SIDE_MAX / max(height, width))
    return tuple(max(round(side * scale / MULTIPLE), 1) * MULTIPLE for side in (height, width))


def resize(picture, height, width):
    """Return it in another size, bilinear between the centres of its pixels."""
    rows = (np.arange(height) + 0.5) * (picture.shape[0] / height) - 0.5
    columns = (np.arange(width) + 0.5) * (picture.shape[1] / width) - 0.5
    return between(between(picture, rows, 0), columns, 1)


def between(picture, places, axis):
    """Return what lies at fractional places along one axis."""
    last = picture.shape[axis] - 1
    places = np.clip(places, 0, last)
    low = np.floor(places).astype(int)
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    share = (places - low).astype(np.float32).reshape(shape)
    first = picture.take(low, axis).astype(np.float32)
    return first + (picture.take(np.minimum(low + 1, last), axis) - first) * share


def crop(picture, box, height):
    """Return what lies in a box (four corners, from the upper left on clockwise), `height` high.

    A box that stands is laid down: its text runs from below to above.
    """
    box = np.asarray(box, np.float32)
    wide, high = sides(box)
    if high >= 1.5 * wide:
        box = np.roll(box, -1, axis=0)
        wide, high = high, wide
    width = int(np.clip(np.ceil(height * wide / max(high, 1.0)), 1, CROP_WIDTH_MAX))
    down = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None, None]
    along = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None, :, None]
    upper = box[0] + (box[1] - box[0]) * along
    lower = box[3] + (box[2] - box[3]) * along
    return sampled(picture, upper + (lower - upper) * down - 0.5)


def sides(box):
    """Return a box's width and height, the longer one where two sides differ."""
    along = np.linalg.norm(box - np.roll(box, -1, axis=0), axis=1)
    return max(along[0], along[2]), max(along[1], along[3])


def sampled(picture, points):
    """Return what lies at fractional points (height, width, 2: x and y), bilinear."""
    last = np.array([picture.shape[1] - 1, picture.shape[0] - 1])
    points = np.clip(points, 0, last)
    low = np.floor(points).astype(int)
    high = np.minimum(low + 1, last)
    across, down = np.moveaxis((points - low).astype(np.float32)[..., None], -2, 0)
    upper = picture[low[..., 1], low[..., 0]] * (1 - across)
    upper += picture[low[..., 1], high[..., 0]] * across
    lower = picture[high[..., 1], low[..., 0]] * (1 - across)
    lower += picture[high[..., 1], high[..., 0]] * across
    return upper * (1 - down) + lower * down


def normalised(picture):
    """Return it as the graphs take it: channels first, from -1 to 1."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1) / 127.5 - 1, np.float32)


def fit(picture, height, width):
    """Return it for a graph, in `height` and at most `width`; what is left at its right is grey."""
    narrow = min(-(-picture.shape[1] * height // picture.shape[0]), width)
    found = np.zeros((3, height, width), np.float32)
    found[:, :, :narrow] = normalised(resize(picture, height, narrow))
    return found
