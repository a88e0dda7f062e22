"""Text of pictures that are rendered here, read by the pipeline.

The oracle is the text that was rendered, and the package's own pipeline on bare onnxruntime. The
recogniser often leaves out spaces: its, and ours, are not compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from examples.ocr.build import build
from headrace.errors import InvalidArgumentError
from tests.server.backends.serving import Served

NEEDED = ("PIL", "rapidocr_onnxruntime")
OF_THE_ORACLE = ("cv2", "pyclipper", "shapely", "six", "tqdm", "yaml")


def missing(*names: str) -> bool:
    return any(find_spec(name) is None for name in names)


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        missing(*NEEDED),
        reason="no graphs: requirements/models.lock is not installed",
    ),
]
Array = np.ndarray[Any, Any]
Line = tuple[str, bool]  # and whether it stands on its head
BOARD = [
    ("Departures 14:35", False),
    ("Gate closes at noon", True),
    ("Platform 9 to Chicago", False),
    ("HEADRACE", False),
]
# More than a batch of the recogniser, and one in three upside down.
PAGE = [(f"row {n} holds {n * n + 11}", n % 3 == 2) for n in range(1, 19)]


def rendered(lines: list[Line], size: tuple[int, int], points: int) -> Array:
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", size, "white")
    font = ImageFont.load_default(points)
    top = 24
    for text, turned in lines:
        _, _, right, bottom = (int(each) for each in font.getbbox(text))
        line = Image.new("RGB", (right + 8, bottom + 8), "white")
        ImageDraw.Draw(line).text((4, 4), text, font=font, fill="black")
        picture.paste(line.rotate(180) if turned else line, (32, top))
        top += bottom + 36
    return np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])  # BGR


def squeezed(texts: Any) -> list[str]:
    found = (text.decode() if isinstance(text, bytes) else text for text in texts)
    return [text.replace(" ", "") for text in found]


def texts_of(lines: list[Line]) -> list[str]:
    return squeezed(text for text, _ in lines)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("ocr") / "models"
    build(root)
    with Served(root) as served:
        yield served


@pytest.fixture(scope="module")
def board() -> Array:
    return rendered(BOARD, (640, 320), 32)


@pytest.fixture(scope="module")
def page() -> Array:
    return rendered(PAGE, (500, 1200), 24)


def runs(served: Served, model: str) -> dict[int, int]:
    """Return how many runs of each size a model had."""
    batches = served.repository.get(model).statistics.batches
    return {rows: of.compute_infer.count for rows, of in batches.items()}


def test_the_text_is_read_also_where_it_is_upside_down(served: Served, board: Array) -> None:
    before = runs(served, "recognise")
    answer = served.infer("read_text", picture=board)
    assert squeezed(answer["text"]) == texts_of(BOARD)
    assert answer["score"].min() > 0.8
    # All crops of a picture are recognised at once.
    after = runs(served, "recognise")
    assert {n: after[n] - before.get(n, 0) for n in after if after[n] != before.get(n)} == {4: 1}


def test_more_lines_than_a_batch(served: Served, page: Array) -> None:
    assert squeezed(served.infer("read_text", picture=page)["text"]) == texts_of(PAGE)


@pytest.mark.skipif(
    missing(*OF_THE_ORACLE),
    reason="no oracle: requirements/models.lock is not installed",
)
def test_it_finds_and_reads_what_the_package_does(
    served: Served, board: Array, page: Array
) -> None:
    from rapidocr_onnxruntime import RapidOCR

    package = RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1)
    for picture in (board, page):
        expected, _ = package(picture)
        answer = served.infer("read_text", picture=picture)
        assert squeezed(answer["text"]) == squeezed(text for _, text, _ in expected)
        found = np.array([box for box, _, _ in expected])
        assert np.abs(answer["box"] - found).max() <= 3  # pixels


def test_pictures_at_once_keep_their_text(served: Served) -> None:
    lines = [[(f"order {n}{n + 1}{n + 2}", n % 2 == 0), ("paid", False)] for n in range(3, 7)]
    many = [{"picture": rendered(each, (300, 200), 30)} for each in lines]
    answers = served.infers("read_text", many)
    assert [squeezed(answer["text"]) for answer in answers] == [texts_of(each) for each in lines]


def test_a_picture_without_text(served: Served) -> None:
    before = runs(served, "recognise"), runs(served, "classify")
    answer = served.infer("read_text", picture=np.full((100, 80, 3), 255, np.uint8))
    assert [answer[name].shape for name in ("text", "score", "box")] == [(0,), (0,), (0, 4, 2)]
    assert (runs(served, "recognise"), runs(served, "classify")) == before  # they were not asked


def test_a_picture_without_pixels(served: Served) -> None:
    error = served.error("read_text", picture=np.zeros((0, 5, 3), np.uint8))
    assert isinstance(error, InvalidArgumentError)
    assert "no pixels" in error.message
