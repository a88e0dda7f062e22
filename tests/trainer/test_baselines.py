import numpy as np
from sklearn.metrics import roc_auc_score

from trainer.baselines import boosted, logistic
from trainer.training import Rows

COLUMNS = ["weather:wind", "carrier:code"]


def problem(rows: int, seed: int) -> Rows:
    """Late by wind, and by carrier in no order of its code; wind is unknown now and then."""
    rng = np.random.default_rng(seed)
    wind, code = rng.normal(size=rows), rng.integers(0, 6, rows)
    score = 1.5 * wind + np.array([2, -2, 2, -2, 2, -2])[code]
    wind[rng.random(rows) < 0.1] = np.nan
    matrix = np.stack([wind, code], axis=1).astype(np.float32)
    return Rows(matrix, rng.random(rows) < 1 / (1 + np.exp(-score)))


def test_logistic_sees_categories_as_categories():
    train, test = problem(4000, 1), problem(2000, 2)
    coded = logistic(train, test.matrix, COLUMNS, ["carrier:code"])
    scaled = logistic(train, test.matrix, COLUMNS, [])
    assert roc_auc_score(test.labels, coded) > 0.85
    assert roc_auc_score(test.labels, scaled) < 0.8


def test_logistic_answers_for_a_category_it_never_saw():
    train, test = problem(2000, 1), problem(10, 2)
    test.matrix[:, 1] = 99
    answers = logistic(train, test.matrix, COLUMNS, ["carrier:code"])
    assert ((answers > 0) & (answers < 1)).all()


def test_boosted_learns_it_too():
    train, tuning, test = (problem(4000, seed) for seed in (1, 2, 3))
    answers = boosted(
        train, tuning, test.matrix, seed=1, threads=1, progress=lambda detail, share: None
    )
    assert roc_auc_score(test.labels, answers) > 0.84
