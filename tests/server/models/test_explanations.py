"""The queue of explanations: one model's are explained together, and none past its deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pytest

from headrace.errors import DeadlineExceededError, InvalidArgumentError
from server.execution.threads import RunThreads
from server.explain.explainer import Explainer
from server.explain.trees import read_ensemble
from server.models.explanations import Explanations
from server.models.repository import ModelRepository
from server.models.versions import BundleSource, VersionLoader
from tests.server.explain.small_trees import FEATURES, Leaf, Split, regressor
from tests.server.onnx_models import mlp_model, put
from tests.server.serving import write_tree_version
from tests.trainer.boosters import booster_text, rows
from trainer.trees import to_single_precision

TREE = Split(1, 0.0, "LEQ", False, Leaf({0: 1.0}, 1), Leaf({0: 3.0}, 3))


@pytest.fixture
def executor() -> Iterator[RunThreads]:
    with RunThreads(2, 1) as executor:
        yield executor


class Counting(Explainer):
    """Notes how many rows are explained at once."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.batches: list[int] = []
        self.prepared = 0

    def prepare(self) -> None:
        self.prepared += 1
        super().prepare()

    def run(self, feeds):
        self.batches.append(len(feeds[0]))
        return super().run(feeds)


def product(inputs):
    return [inputs[0].prod(axis=1, keepdims=True)]


async def test_what_comes_together_is_explained_together_and_prepared_once(executor):
    explainer = Counting(None, None, read_ensemble(regressor([TREE])))
    explanations = Explanations(explainer, 64, executor, "m")
    await explanations.explain([np.zeros((1, FEATURES))], 1, None)
    matrices = [np.full((rows, FEATURES), rows - 2.0) for rows in (1, 2, 3)]
    found = await asyncio.gather(
        *(explanations.explain([matrix], len(matrix), None) for matrix in matrices)
    )
    assert explainer.batches == [1, 6]
    assert explainer.prepared == 1
    for matrix, each in zip(matrices, found, strict=True):
        assert each.values.shape == (len(matrix), FEATURES, 1)
        assert each.method == "tree_shap"
        assert each.errors is None


async def test_the_request_id_decides_what_is_drawn_whatever_it_is_batched_with(executor):
    explanations = Explanations(Explainer(product, 0, None), 64, executor, "m")
    rng = np.random.default_rng(1)
    matrix, other = rng.normal(size=(2, 2, 6))
    alone = await explanations.explain([matrix], 2, None, "a")
    _, among = await asyncio.gather(
        explanations.explain([other], 2, None, "b"), explanations.explain([matrix], 2, None, "a")
    )
    assert np.array_equal(alone.values, among.values)
    assert np.array_equal(alone.errors, among.errors)
    assert not np.array_equal(alone.values, (await explanations.explain([matrix], 2, None)).values)


async def test_a_bad_request_costs_no_other_its_explanation(executor):
    def score(inputs):
        if np.isnan(inputs[0]).any():
            raise InvalidArgumentError("not a number")
        return product(inputs)

    explanations = Explanations(Explainer(score, 0, None), 64, executor, "m")
    good, bad = np.ones((1, 3)), np.full((1, 3), np.nan)
    found, failed = await asyncio.gather(
        explanations.explain([good], 1, None),
        explanations.explain([bad], 1, None),
        return_exceptions=True,
    )
    assert found.values.sum() == pytest.approx(1)
    assert isinstance(failed, InvalidArgumentError)


async def test_a_deadline_that_passes_on_the_way_is_an_error_not_nan(executor):
    runs = []

    def slow(inputs):
        runs.append(1)
        time.sleep(0.05)
        return product(inputs)

    explanations = Explanations(Explainer(slow, 0, None), 64, executor, "m")
    deadline_ns = time.monotonic_ns() + 20_000_000
    with pytest.raises(DeadlineExceededError):
        await explanations.explain([np.ones((8, 600))], 8, deadline_ns)
    assert len(runs) <= 2  # of at least sixteen


def test_files_with_and_without_trees(tmp_path: Path, executor) -> None:
    put(tmp_path, "trees", regressor([TREE]), config="max_batch_size: 8")
    put(tmp_path, "none", mlp_model())
    put(
        tmp_path, "damaged", regressor([TREE], nodes_hitrates=[1.0] * 5), config="max_batch_size: 8"
    )
    repository = ModelRepository(tmp_path, executor)
    asyncio.run(repository.load_all())
    for name, method in (("trees", "tree_shap"), ("none", "permutation"),
                         ("damaged", "permutation")):  # fmt: skip
        model = repository.get(name)
        matrix = np.ones((2, 3 if name == "none" else FEATURES), np.float32)
        found = asyncio.run(model.explain([matrix], 2, None))
        assert found.method == method


async def test_a_bundle_of_the_trainers_trees_is_explained_exactly(tmp_path: Path, executor):
    text = to_single_precision(booster_text())
    matrix = rows(6, seed=3)
    booster = lgb.Booster(model_str=text)
    digest = write_tree_version(tmp_path, text)
    loader = VersionLoader(BundleSource(f"file://{tmp_path}", tmp_path), executor)
    version = loader.load("late", digest)
    found = await version.model.explain([matrix], 6, None)
    assert found.method == "tree_shap"
    both = np.hstack([found.values[:, :, 0], found.base])
    assert np.abs(both - booster.predict(matrix, pred_contrib=True)).max() < 1e-6
