"""LightGBM's model text as a forest.

The format is LightGBM's own (`gbdt_model_text.cpp`, versions v3 and v4); `trainer.trees` reads it.
LightGBM compares float64, and reads tiny numbers as zero: thresholds are rounded so that float32
rows take the same ways.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from headrace.errors import FailedPreconditionError, HeadraceError, UnimplementedError
from server.backends.forests.forest import EXP, PLAIN, SIGMOID, SOFTMAX, Forest
from trainer.trees import read_header, read_trees, round_down, round_leaves

# LightGBM cuts a category's fraction off, and only then is it below zero or not.
_CATEGORY_LEAST = float(np.nextafter(np.float32(-1), np.float32(0)))
_FINISHES = {
    "binary": SIGMOID, "cross_entropy": SIGMOID,
    "multiclass": SOFTMAX, "multiclassova": SIGMOID,
    "regression": PLAIN, "regression_l1": PLAIN, "huber": PLAIN, "fair": PLAIN,
    "quantile": PLAIN, "mape": PLAIN, "lambdarank": PLAIN, "rank_xendcg": PLAIN,
    "poisson": EXP, "gamma": EXP, "tweedie": EXP,
}  # fmt: skip


def read_lightgbm(data: bytes) -> Forest:
    """Return the forest of a model text.

    Leaves that end in probabilities are rounded as `trainer.trees` does, to multiples of 2⁻²⁰: then
    no order of summation changes a bit. Others are rounded to float32.

    Raises FailedPreconditionError for a text that is not LightGBM's, UnimplementedError for a model
    of another kind.
    """
    try:
        return _read(data.decode())
    except HeadraceError:
        raise
    except UnicodeDecodeError:
        raise _not_lightgbm("what is no text") from None
    except (KeyError, ValueError, OverflowError, IndexError):
        raise _not_lightgbm("what cannot be read so") from None


def _read(text: str) -> Forest:
    if text.partition("\n")[0].strip() != "tree":
        raise _not_lightgbm("another first line")
    if "\nend of trees" not in text:
        raise _not_lightgbm("no end of the trees")
    header = read_header(text)
    head = text.partition("\nTree=")[0]
    finish = _finish(header)
    trees = read_trees(text)
    told = len(header["tree_sizes"].split())
    if len(trees) != told:
        raise _not_lightgbm(f"{len(trees)} trees where {told} are listed")
    sums = int(header["num_tree_per_iteration"])
    if not 0 < sums <= max(len(trees), 1):
        raise _not_lightgbm("fewer trees than sums")
    # The sums of a random forest are averages over its iterations.
    iterations = len(trees) // sums if "average_output" in head.splitlines() else 1
    exact = finish in {SIGMOID, SOFTMAX}
    return Forest(
        trees=[
            replace(
                tree,
                threshold=round_down(tree.threshold).astype(np.float64),
                leaf=round_leaves(tree.leaf / iterations) if exact else tree.leaf / iterations,
            )
            for tree in trees
        ],
        targets=[number % sums for number in range(len(trees))],
        features=int(header["max_feature_idx"]) + 1,
        base=[0.0] * sums,
        finish=finish,
        branch="BRANCH_LEQ",
        category_least=_CATEGORY_LEAST,
    )


def _finish(header: dict[str, str]) -> str:
    objective = header["objective"].split()
    name, options = objective[0], dict(each.partition(":")[::2] for each in objective[1:])
    if name not in _FINISHES or options.get("sigmoid", "1") != "1" or "sqrt" in options:
        raise UnimplementedError(
            "a LightGBM model of this kind cannot be served",
            expected=f"boosting with an objective of {', '.join(_FINISHES)}",
            got=header["objective"][:64],
            mend="convert it to ONNX",
        )
    return _FINISHES[name]


def _not_lightgbm(got: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        "the file is not a whole LightGBM model text",
        expected="what Booster.save_model writes",
        got=got,
        mend="save the model anew",
    )
