import sys

import pytest

from headrace.errors import NotFoundError
from trainer import load_project


def test_a_folder_uses_its_own_files_and_hides_nobody_elses(tmp_path):
    (tmp_path / "pipeline.py").write_text("from .data import ANSWER\nimport features\n")
    (tmp_path / "data.py").write_text("ANSWER = 42\n")
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "__init__.py").write_text("raise ValueError('hidden')\n")
    before = list(sys.path)
    project = load_project(tmp_path)
    assert project.ANSWER == 42
    assert hasattr(project.features, "FeatureView")
    assert sys.path == before


def test_loading_again_reads_again(tmp_path):
    (tmp_path / "pipeline.py").write_text("from .data import ANSWER\n")
    for answer in ("'one'", "'number two'"):
        (tmp_path / "data.py").write_text(f"ANSWER = {answer}\n")
        assert answer.strip("'") == load_project(tmp_path).ANSWER


def test_two_folders_do_not_meet(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "pipeline.py").write_text(f"NAME = {name!r}\n")
    a, b = load_project(tmp_path / "a"), load_project(tmp_path / "b")
    assert (a.NAME, b.NAME) == ("a", "b")
    assert a.__name__ != b.__name__


def test_a_folder_without_a_pipeline_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="no pipeline in this folder"):
        load_project(tmp_path)
