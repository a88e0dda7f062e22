"""The flights' pipeline on a fifth of the decisions (all of the events)."""

import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from headrace.times import from_us, to_us
from trainer import Pipeline, Training, load_project, steps
from trainer.bundle import read_bundle
from trainer.recipe import LOGISTIC, NO_HISTORY

FLIGHTS = Path(__file__).parents[2] / "examples" / "flights"
project = load_project(FLIGHTS)


def thin(context: Training) -> None:
    context.spine = context.spine.take(np.arange(0, context.spine.num_rows, 5))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    context = Training(
        recipe=project.RECIPE, data_dir=tmp_path_factory.mktemp("data"), code=FLIGHTS, threads=2
    )
    pipeline = Pipeline("flights", [*project.PIPELINE.steps[:1], thin, *project.PIPELINE.steps[1:]])
    return steps.results(context, pipeline.run(context))


def test_the_seven_steps():
    assert project.PIPELINE.step_names == [
        "ingest",
        "validate_data",
        "transform",
        "train",
        "evaluate",
        "validate_model",
        "register",
    ]


def test_the_folder_stays_out_of_the_way():
    assert str(FLIGHTS) not in sys.path
    assert "data" not in sys.modules


def test_months_begin_at_midnight_in_new_york():
    assert [project.month(n).isoformat() for n in (1, 9, 11, 13)] == [
        "2013-01-01T00:00:00-05:00",
        "2013-09-01T00:00:00-04:00",
        "2013-11-01T00:00:00-04:00",
        "2014-01-01T00:00:00-05:00",
    ]


def test_the_experiment_judges_no_arm_on_what_it_has_learned():
    experiment = tomllib.loads(project.EXPERIMENT.read_text())
    candidates = {candidate.name: candidate for candidate in project.RECIPE.candidates}
    assert {arm["version"] for arm in experiment["arms"]} == set(candidates)
    for arm in experiment["arms"]:
        assert arm["from"] >= candidates[arm["version"]].train.end
        assert arm["from"] == candidates[arm["version"]].test.start
    assert experiment["experiment"]["model"] == project.RECIPE.model
    assert sum(arm["weight"] for arm in experiment["arms"]) == 1
    assert experiment["experiment"]["start"] == project.RECIPE.champion.test.start
    assert experiment["experiment"]["end"] == project.RECIPE.champion.test.end


@pytest.mark.slow
def test_history_is_worth_its_six_hundredths(results):
    champion = results.evaluations["champion"].auc.value
    assert champion >= results.baselines[LOGISTIC].auc.value + 0.06
    assert champion >= results.baselines[NO_HISTORY].auc.value + 0.06
    assert {f"origin={name}" for name in ("EWR", "JFK", "LGA")} < set(
        results.evaluations["champion"].auc.slices
    )


@pytest.mark.slow
def test_onnx_and_lightgbm_agree_on_every_flight_and_every_split(results):
    for report in results.parity.values():
        assert report.splits > 1000
        assert report.batch_bits_differ == 0
        for check in report.shipped.values():
            assert check.label_flips == 0
            assert check.delta_max < 2e-7
        for check in report.unrounded.values():
            assert check.delta_max < 1e-5


@pytest.mark.slow
def test_the_test_period_is_october_to_december(results):
    times = results.spine["event_time"].to_numpy()
    first, last = from_us(int(times.min())), from_us(int(times.max()))
    assert first >= project.month(10)
    assert last < project.month(13)
    landed = results.spine["label_time"].to_numpy()
    assert (landed > times).all()
    assert to_us(project.month(12)) < times.max()


@pytest.mark.slow
def test_both_bundles_can_be_read_and_have_a_card(results):
    for name, folder in results.bundles.items():
        bundle = read_bundle(folder, expected=results.digests[name])
        card = bundle.read("card.md").decode()
        assert card.startswith(f"# flight_delay: {name}")
        assert "flown flights" in card
        assert "flights.csv.zip" in bundle.manifest.lineage.datasets
