import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, log_loss

from tests.trainer.boosters import labels, rows
from trainer.training import Rows, choose_threshold, predictor, train, tune
from trainer.trees import LEAF_GRID

SMALL = {
    "num_leaves": 15,
    "learning_rate": 0.2,
    "min_data_in_leaf": 50,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
}
POOR = SMALL | {"num_leaves": 2, "learning_rate": 0.001}


def quiet(detail: str, share: float) -> None:
    assert detail
    assert 0 <= share <= 1


@pytest.fixture(scope="module")
def learned() -> Rows:
    matrix = rows(5000, seed=1)
    return Rows(matrix, labels(matrix, seed=2))


@pytest.fixture(scope="module")
def tuning() -> Rows:
    matrix = rows(1500, seed=3)
    return Rows(matrix, labels(matrix, seed=4))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_rows_give_the_same_bytes_whatever_the_threads(learned, threads):
    one = train(learned, SMALL, 20, seed=5, threads=1, progress=quiet)
    other = train(learned, SMALL, 20, seed=5, threads=threads, progress=quiet)
    assert one.text.replace("[num_threads: 1]", "") == other.text.replace(
        f"[num_threads: {threads}]", ""
    )


def test_another_seed_gives_another_model(learned):
    one, other = (train(learned, SMALL, 5, seed=s, threads=1, progress=quiet) for s in (1, 2))
    assert one.text != other.text


def test_tuning_takes_the_setting_and_the_round_that_tuning_rows_like_best(learned, tuning):
    model = tune(learned, tuning, seed=1, threads=1, progress=quiet, search=(POOR, SMALL))
    assert model.parameters == SMALL
    assert [trial.parameters for trial in model.trials] == [POOR, SMALL]
    loss = log_loss(tuning.labels, predictor(model.unrounded, 1)(tuning.matrix))
    assert loss == pytest.approx(model.trials[1].log_loss, abs=1e-9)
    assert loss < model.trials[0].log_loss
    again = train(learned, SMALL, model.rounds, seed=1, threads=1, progress=quiet)
    assert np.array_equal(
        predictor(again.text, 1)(tuning.matrix), predictor(model.text, 1)(tuning.matrix)
    )
    for rounds in (model.rounds - 5, model.rounds + 5):
        less_good = train(learned, SMALL, rounds, seed=1, threads=1, progress=quiet)
        predicted = predictor(less_good.unrounded, 1)(tuning.matrix)
        assert log_loss(tuning.labels, predicted) > loss


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(5, 200))
def test_the_threshold_has_the_greatest_f1(seed, count):
    rng = np.random.default_rng(seed)
    grid = np.arange(1, 40) / 40
    probabilities = rng.choice(grid, count)
    truth = rng.random(count) < probabilities
    truth[0] = True
    threshold = choose_threshold(truth, probabilities)
    found = f1_score(truth, probabilities >= threshold)
    best = max(f1_score(truth, probabilities >= cut) for cut in np.unique(probabilities))
    assert found == pytest.approx(best)


@given(st.integers(0, 1000))
def test_no_sum_of_leaves_is_near_the_threshold(seed):
    """Half a step away in the sum: more than float32 can err in the probability."""
    rng = np.random.default_rng(seed)
    sums = np.rint(rng.normal(-1.5, 1, 500) / LEAF_GRID) * LEAF_GRID
    probabilities = 1 / (1 + np.exp(-sums))
    truth = rng.random(500) < probabilities
    threshold = choose_threshold(truth, probabilities)
    score = np.log(threshold / (1 - threshold)) / LEAF_GRID
    assert abs(score - np.floor(score) - 0.5) < 0.01


def test_no_rows_give_no_answers(learned):
    model = train(learned, SMALL, 2, seed=1, threads=1, progress=quiet)
    assert predictor(model.text, 1)(learned.matrix[:0]).shape == (0,)
