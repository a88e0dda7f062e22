import copy
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.isotonic import IsotonicRegression

from features import FeatureStatus
from headrace.errors import FailedPreconditionError, InvalidArgumentError
from headrace.times import to_us
from monitor.daily import decode_days
from monitor.profile import read_profile
from tests.trainer import shop
from trainer import Pipeline, steps
from trainer.bundle import read_bundle
from trainer.calibrators import calibrate, read_calibrator
from trainer.golden import read_golden
from trainer.lineage import table_digest
from trainer.recipe import LOGISTIC, NO_HISTORY, Candidate, Period
from trainer.scoring import onnx_predictor

STEPS = [
    steps.validate_data,
    steps.transform,
    steps.train,
    steps.evaluate,
    steps.validate_model,
    steps.register,
]


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return shop.context(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def run(context):
    return Pipeline("returns", STEPS).run(context)


@pytest.fixture(scope="module")
def results(context, run):
    return steps.results(context, run)


def test_the_model_beats_the_baselines_that_know_less(results):
    champion = results.evaluations["champion"].auc.value
    assert champion > results.baselines[LOGISTIC].auc.value + 0.05
    assert champion > results.baselines[NO_HISTORY].auc.value + 0.05
    assert set(results.evaluations) == {
        "champion",
        "challenger",
        "champion on challenger's test",
    }
    pair = (results.evaluations["challenger"], results.evaluations["champion on challenger's test"])
    assert pair[0].auc.rows == pair[1].auc.rows < results.evaluations["champion"].auc.rows


def test_results_are_the_champions_test_row_for_row(results, context):
    times = results.spine["event_time"].to_numpy()
    assert times.min() >= to_us(shop.day(65))
    assert len(times) == len(results.features) == results.evaluations["champion"].auc.rows
    for name, bundle in results.bundles.items():
        model = onnx_predictor(read_bundle(bundle).read("model.onnx"), 1)
        again = model(results.features.matrix())
        assert np.array_equal(again.view(np.int32), results.predictions[name].view(np.int32))


def test_a_candidate_learns_only_what_was_known_when_its_period_ended(context):
    candidate = context.recipe.champion
    rows = context.training_rows(candidate)
    end = to_us(candidate.train.end)
    known, decided = context.times("known"), context.times()
    assert known[rows].max() < end
    assert ((decided < end) & (known >= end)).sum() > 0
    assert len(rows) == ((decided < end) & (known < end)).sum()


def test_a_row_knows_nothing_of_what_came_after_it(results):
    """The feature, counted by hand: orders of the same shop known in the day before."""
    batch, spine = results.features, results.spine.to_pandas()
    orders = results.events["orders"].to_pandas()
    counts = batch.column("history:returned_count_1d")
    means = batch.column("history:returned_mean_1d")
    hour = 3_600_000_000
    for row in range(0, len(spine), 97):
        t = spine.event_time[row]
        seen = orders[
            (orders.shop == spine.shop[row])
            & (orders.event_time >= (t - 24 * hour) // hour * hour)
            & (orders.event_time < t)
        ]
        assert counts.values[row] == len(seen)
        if len(seen):
            assert means.values[row] == pytest.approx(seen.returned.mean())
        else:
            assert not means.mask[row]


def test_what_was_learned_from_is_kept_and_named_by_its_digest(context, run):
    kept = pq.read_table(context.folder / steps.DATASET)
    assert kept.select(context.spine.column_names).equals(context.spine)
    assert kept.drop_columns(context.spine.column_names).equals(context.features.to_arrow())
    (output,) = [one for one in run["outputs"] if one["name"] == "dataset"]
    assert output["digest"] == table_digest(kept)


def test_each_bundle_is_whole_and_says_where_it_comes_from(results, context, run):
    for name, folder in results.bundles.items():
        bundle = read_bundle(folder, expected=results.digests[name])
        manifest = bundle.manifest
        assert manifest.name == "returns"
        assert manifest.signature.inputs[0].shape == [-1, len(results.service.columns)]
        assert manifest.feature_service.columns == results.service.columns
        assert manifest.feature_service.hash == results.service.hash
        assert manifest.decision.classes == ["kept", "returned"]
        assert manifest.decision.threshold == context.trained[name].threshold
        assert manifest.metrics["auc"] == results.evaluations[name].auc
        assert manifest.lineage.run == run["run"]
        assert set(manifest.lineage.datasets) == {"orders", "shops", "spine"}
        assert manifest.lineage.parameters["rounds"] == context.trained[name].model.rounds
        assert bundle.read("definitions.py").decode() == shop.DEFINITIONS
        assert "## How good it is" in bundle.read("card.md").decode()


def test_golden_rows_are_answered_as_they_were(results):
    for folder in results.bundles.values():
        bundle = read_bundle(folder)
        golden = read_golden(bundle.read(bundle.manifest.golden.file))
        answers = onnx_predictor(bundle.read("model.onnx"), 1)(golden["features"])
        assert np.abs(answers - golden["probability"][:, 0]).max() <= 1e-6


def test_the_profile_is_that_of_the_rows_it_was_trained_on(results, context):
    profile = read_profile(results.bundles["champion"] / "profile.arrow")
    rows = context.training_rows(context.recipe.champion)
    assert profile.columns == results.service.columns
    assert profile.rows == len(rows)
    assert profile.observed_share == pytest.approx(context.labels[rows].mean())


def test_the_baseline_is_made_of_whole_days_before_service(results):
    days = decode_days(read_bundle(results.bundles["champion"]).read("baseline.msgpack"))
    assert [each.date for each in days] == [shop.day(n).date() for n in range(50, 65)]
    files = {file.path for file in read_bundle(results.bundles["challenger"]).manifest.files}
    assert "baseline.msgpack" not in files


def test_the_challenger_takes_the_champions_parameters_and_threshold(context, run):
    champion, challenger = (context.trained[name] for name in ("champion", "challenger"))
    assert challenger.model.parameters == champion.model.parameters
    assert challenger.model.rounds == champion.model.rounds
    assert challenger.threshold == champion.threshold
    assert challenger.model.text != champion.model.text


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory, context, run):
    """The same problem's last steps, with calibrated probabilities."""
    recipe = replace(context.recipe, calibrator="isotonic")
    again = replace_context(context, recipe, tmp_path_factory.mktemp("calibrated"))
    Pipeline("returns", STEPS[2:]).run(again)
    return again


def replace_context(context, recipe, folder):
    again = copy.copy(context)
    again.recipe, again.data_dir = recipe, folder
    for name in ("trained", "predictions", "evaluations", "baselines", "parity", "bundles"):
        setattr(again, name, {})
    again.digests, again.outputs, again.parameters = {}, {}, {}
    return again


def test_a_calibrator_is_fitted_on_the_tuning_rows_and_ships_with_the_model(calibrated):
    recipe = calibrated.recipe
    rows = calibrated.period_rows(recipe.champion.tune)
    for name, folder in calibrated.bundles.items():
        bundle = read_bundle(folder)
        decision = bundle.manifest.decision
        calibrator = read_calibrator(bundle.read(decision.calibrator))
        assert calibrator == calibrated.trained["champion"].calibrator
        raw = onnx_predictor(bundle.read("model.onnx"), 1)(calibrated.matrix)
        assert np.array_equal(calibrate(calibrator, raw), calibrated.predictions[name])
        golden = read_golden(bundle.read(bundle.manifest.golden.file))
        answers = calibrate(calibrator, onnx_predictor(bundle.read("model.onnx"), 1)(
            golden["features"]
        ))  # fmt: skip
        assert np.abs(answers - golden["probability"][:, 0]).max() <= 1e-6
        assert bundle.manifest.golden.tolerance >= 1e-6
        assert "calibrated (isotonic)" in bundle.read("card.md").decode()
        assert bundle.manifest.lineage.parameters["calibrator"] == "isotonic"
    raw = onnx_predictor(calibrated.trained["champion"].onnx, 1)(calibrated.matrix)[rows]
    theirs = IsotonicRegression(out_of_bounds="clip").fit(raw, calibrated.labels[rows])
    assert np.abs(calibrated.predictions["champion"][rows] - theirs.predict(raw)).max() < 1e-6


def test_no_row_that_reaches_the_models_cut_falls_below_the_served_threshold(calibrated, context):
    trained = calibrated.trained["champion"]
    assert trained.cut == context.trained["champion"].threshold
    raw = onnx_predictor(trained.onnx, 1)(calibrated.matrix)
    served = calibrated.predictions["champion"].astype(np.float64) >= trained.threshold
    assert served[raw >= trained.cut].all()
    assert not served[raw < trained.cut / 2].any()


def test_the_record_names_what_went_in_and_what_came_out(run, results):
    assert run["event_type"] == "COMPLETE"
    assert [step["name"] for step in run["steps"]] == [step.__name__ for step in STEPS]
    assert {each["name"] for each in run["inputs"]} == {"orders", "shops", "spine"}
    outputs = {each["name"]: each["digest"] for each in run["outputs"]}
    assert outputs.pop("dataset").startswith("sha256:")
    assert outputs == {f"returns/{name}": digest for name, digest in results.digests.items()}


def test_two_runs_give_the_same_models(context, run, tmp_path):
    again = shop.context(tmp_path)
    Pipeline("returns", STEPS[:3]).run(again)
    for name, trained in context.trained.items():
        assert again.trained[name].onnx == trained.onnx
        assert again.trained[name].threshold == trained.threshold


def test_a_second_run_uses_the_history_that_is_there(context, run):
    again = shop.context(context.data_dir.parent)
    Pipeline("returns", STEPS[:2]).run(again)
    assert np.array_equal(again.features.words, context.features.words)
    again.events["orders"] = again.events["orders"].slice(1)
    with pytest.raises(FailedPreconditionError, match="'orders' holds other events"):
        Pipeline("returns", STEPS[:2]).run(again)


def test_a_model_that_is_not_worth_its_features_is_refused(context, run, tmp_path):
    proud = shop.context(tmp_path, auc_gain_min=0.9)
    for name in ("matrix", "trained", "evaluations", "baselines", "definitions", "service"):
        setattr(proud, name, getattr(context, name))
    with pytest.raises(FailedPreconditionError, match="does not beat its baseline"):
        Pipeline("returns", [steps.validate_model, steps.register]).run(proud)
    assert not proud.bundles


def test_a_candidate_without_parameters_is_named(context, run, tmp_path):
    alone = Candidate(
        "alone",
        train=Period(shop.day(0), shop.day(50)),
        test=Period(shop.day(50), shop.day(100)),
        like="nobody",
    )
    orphan = shop.context(tmp_path, candidates=(alone,))
    orphan.matrix = context.matrix
    with pytest.raises(InvalidArgumentError, match="'alone' has no parameters"):
        Pipeline("returns", [steps.train]).run(orphan)


def test_absent_features_are_nan_to_the_model(results):
    absent = results.features.status != FeatureStatus.PRESENT
    assert np.array_equal(np.isnan(results.features.matrix()), absent)
