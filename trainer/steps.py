"""Six of the seven steps, for a binary classifier on the features of a service.

The first, ingest, is the user's: it fills `context.events` and `context.spine`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features import load_definitions
from features.offline import OfflineStore, get_historical_features
from features.offline.training_set import with_features
from headrace.errors import FailedPreconditionError, InvalidArgumentError
from trainer import baselines
from trainer import evaluate as evaluation
from trainer.calibration import fit_calibrator
from trainer.calibrators import Calibrator
from trainer.data_checks import check_events, check_spine
from trainer.export import forest_to_onnx
from trainer.lineage import table_digest
from trainer.packing import pack_bundle
from trainer.parity import Predictors, check_parity
from trainer.recipe import LOGISTIC, NO_HISTORY, Candidate, Period, Results, Trained, Training
from trainer.scoring import onnx_predictor
from trainer.training import Model, Rows, choose_threshold, predictor
from trainer.training import train as train_model
from trainer.training import tune as tune_model
from trainer.trees import read_forest

DATASET = "dataset.parquet"


def validate_data(context: Training) -> None:
    """Check the events against their sources' definitions, and the spine against the recipe."""
    recipe = context.recipe
    context.definitions = load_definitions(recipe.definitions)
    context.service = context.definitions.service(recipe.service)
    check_events(context.definitions, context.events)
    check_spine(context.spine, context.service, recipe)
    context.inputs |= {name: table_digest(table) for name, table in context.events.items()}
    context.inputs["spine"] = table_digest(context.spine)


def transform(context: Training) -> None:
    """Fill the offline store, and join every decision with what was known at its time.

    What is learned from is kept in the run's folder, and its digest is in the record.
    """
    store = OfflineStore(context.offline)
    for name, table in context.events.items():
        _append(store, name, table)
    context.features = get_historical_features(
        context.spine, context.service, store, context.report
    )
    context.matrix = context.features.matrix()
    dataset = with_features(context.spine, context.features)
    pq.write_table(dataset, context.folder / DATASET, compression="zstd")
    context.outputs["dataset"] = table_digest(dataset)


def train(context: Training) -> None:
    """Train and tune every candidate, and export it."""
    for candidate in context.recipe.candidates:
        context.trained[candidate.name] = _train(context, candidate)


def evaluate(context: Training) -> None:
    """Score every candidate as it will be served, and the baselines on the champion's rows."""
    recipe = context.recipe
    for name, trained in context.trained.items():
        context.report(f"score {name}", 0.1)
        answers = onnx_predictor(trained.onnx, context.threads)(context.matrix)
        context.predictions[name] = trained.served(answers)
    champion = recipe.champion
    for candidate in recipe.candidates:
        rows = context.period_rows(candidate.test)
        context.evaluations[candidate.name] = _evaluate(
            context, context.predictions[candidate.name][rows], candidate.test
        )
        if candidate is not champion:
            name = f"{champion.name} on {candidate.name}'s test"
            context.evaluations[name] = _evaluate(
                context, context.predictions[champion.name][rows], candidate.test
            )
    _evaluate_baselines(context)


def validate_model(context: Training) -> None:
    """Refuse a model whose export answers differently, or that is not worth its features.

    Raises FailedPreconditionError.
    """
    recipe = context.recipe
    test = context.matrix[context.period_rows(recipe.champion.test)]
    for number, (name, trained) in enumerate(context.trained.items()):
        context.report(f"parity of {name}", number / len(context.trained))
        context.parity[name] = check_parity(
            Predictors(
                onnx=onnx_predictor(trained.onnx, context.threads),
                booster=predictor(trained.model.text, context.threads),
                unrounded=predictor(trained.model.unrounded, context.threads),
                threshold=trained.cut,
            ),
            read_forest(trained.model.text),
            test,
        )
    auc = context.evaluations[recipe.champion.name].auc.value
    baseline = context.baselines[LOGISTIC].auc.value
    if auc < baseline + recipe.auc_gain_min:
        raise FailedPreconditionError(
            "the model does not beat its baseline",
            where=f"model {recipe.model!r}",
            expected=f"AUC at least {baseline + recipe.auc_gain_min:.4f}",
            got=f"{auc:.4f}",
            mend="do not register it",
        )


def register(context: Training) -> None:
    """Write each candidate's bundle: what a registry takes in, byte for byte."""
    for candidate in context.recipe.candidates:
        context.report(f"bundle of {candidate.name}", 0.5)
        folder = context.folder / candidate.name
        digest = pack_bundle(context, candidate, folder)
        context.bundles[candidate.name] = folder
        context.digests[candidate.name] = digest
        context.outputs[f"{context.recipe.model}/{candidate.name}"] = digest


def results(context: Training, run: dict[str, Any]) -> Results:
    """Return what a finished run gives."""
    rows = context.period_rows(context.recipe.champion.test)
    return Results(
        bundles=context.bundles,
        digests=context.digests,
        evaluations=context.evaluations,
        baselines=context.baselines,
        parity=context.parity,
        spine=context.spine.take(rows),
        features=context.features.take(rows),
        predictions={name: values[rows] for name, values in context.predictions.items()},
        events=context.events,
        service=context.service,
        offline=context.offline,
        run=run,
    )


def _append(store: OfflineStore, name: str, table: pa.Table) -> None:
    """Append a source's events, unless they are there from a run before."""
    if name not in store.sources():
        store.append(name, table)
        return
    held = store.read(name).select(table.column_names)
    if table_digest(held.cast(table.schema)) != table_digest(table):
        raise FailedPreconditionError(
            f"the history of source {name!r} holds other events",
            where="offline store",
            expected=f"the run's own {table.num_rows} events, or none",
            got=f"{held.num_rows} events",
            mend="take an empty data directory",
        )


def _rows(context: Training, rows: NDArray[np.int64]) -> Rows:
    return Rows(context.matrix[rows], context.labels[rows])


def _train(context: Training, candidate: Candidate) -> Trained:
    recipe = context.recipe
    learned = _rows(context, context.training_rows(candidate))

    def report(detail: str, share: float) -> None:
        at = recipe.candidates.index(candidate)
        context.report(f"{candidate.name}: {detail}", (at + share) / len(recipe.candidates))

    if candidate.tune is None:
        if candidate.like not in context.trained:
            raise InvalidArgumentError(
                f"candidate {candidate.name!r} has no parameters",
                where=f"recipe of {recipe.model!r}",
                expected="a period to tune on, or the name of a candidate before it",
                got=f"like={candidate.like!r}",
            )
        like = context.trained[candidate.like]
        model = train_model(
            learned,
            like.model.parameters,
            like.model.rounds,
            seed=recipe.seed,
            threads=context.threads,
            progress=report,
        )
        onnx = _exported(context, model)
        # It has seen every row on which a threshold could be chosen.
        cut, calibrator = like.cut, like.calibrator
    else:
        tuning = _rows(context, context.period_rows(candidate.tune))
        model = tune_model(
            learned, tuning, seed=recipe.seed, threads=context.threads, progress=report
        )
        onnx = _exported(context, model)
        cut = choose_threshold(tuning.labels, predictor(model.text, context.threads)(tuning.matrix))
        calibrator = _fit_calibrator(context, onnx, tuning)
    trained = Trained(model, onnx, cut, calibrator)
    context.parameters[candidate.name] = {
        **model.parameters,
        "rounds": model.rounds,
        "seed": recipe.seed,
        "threshold": trained.threshold,
        **({} if calibrator is None else {"calibrator": recipe.calibrator}),
        "train": str(candidate.train),
        "rows": len(learned),
    }
    return trained


def _exported(context: Training, model: Model) -> bytes:
    return forest_to_onnx(read_forest(model.text), context.recipe.model).SerializeToString()


def _fit_calibrator(context: Training, onnx: bytes, tuning: Rows) -> Calibrator | None:
    """Fit it to what is served, to the bit: an isotonic one may step within a rounding."""
    kind = context.recipe.calibrator
    if kind is None:
        return None
    answers = onnx_predictor(onnx, context.threads)(tuning.matrix)
    return fit_calibrator(kind, tuning.labels, answers)


def _evaluate(
    context: Training, probabilities: NDArray[np.floating], period: Period
) -> evaluation.Evaluation:
    rows = context.period_rows(period)
    slices = {name: context.spine[name].to_numpy()[rows] for name in context.recipe.slices}
    return evaluation.evaluate(context.labels[rows], probabilities, slices)


def _evaluate_baselines(context: Training) -> None:
    recipe, champion = context.recipe, context.recipe.champion
    columns = context.definitions.service(recipe.baseline_service).columns
    where = [context.service.columns.index(name) for name in columns]
    few = context.matrix[:, where]
    labels, train_rows = context.labels, context.training_rows(champion)
    learned = Rows(few[train_rows], labels[train_rows])
    test = few[context.period_rows(champion.test)]
    context.report("logistic regression", 0.3)
    context.baselines[LOGISTIC] = _evaluate(
        context, baselines.logistic(learned, test, columns, recipe.categories), champion.test
    )
    assert champion.tune is not None, "the champion is the one that is tuned"
    tuning_rows = context.period_rows(champion.tune)
    context.baselines[NO_HISTORY] = _evaluate(
        context,
        baselines.boosted(
            learned,
            Rows(few[tuning_rows], labels[tuning_rows]),
            test,
            seed=recipe.seed,
            threads=context.threads,
            progress=lambda _, share: context.report(NO_HISTORY, 0.7 + 0.3 * share),
        ),
        champion.test,
    )
