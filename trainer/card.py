"""The model card: one page for a person who must decide whether this version may run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trainer.evaluate import Evaluation
from trainer.lineage import CodeVersion
from trainer.manifest import Metric
from trainer.parity import ParityReport
from trainer.recipe import Candidate, Trained, Training

SLICES_SHOWN = 12


def render_card(context: Training, candidate: Candidate) -> str:
    """Return the card of a candidate as Markdown, from what the run's steps have found."""
    recipe = context.recipe
    trained = context.trained[candidate.name]
    evaluation = context.evaluations[candidate.name]
    return "\n".join(
        [
            f"# {recipe.model}: {candidate.name}",
            "",
            *_summary(context, trained),
            "",
            "## Use",
            *_list(
                [
                    f"Owner: {recipe.purpose.owner}",
                    f"For: {recipe.purpose.use}",
                    f"Not for: {recipe.purpose.not_for}",
                    *(f"Limit: {limit}" for limit in recipe.purpose.limits),
                ]
            ),
            "## Data",
            *_list(_data(context, candidate)),
            "## How good it is",
            *_metrics(context, candidate),
            "### Calibration",
            *_table(
                ["rows", "predicted", "observed"],
                [
                    [str(each.rows), f"{each.predicted:.3f}", f"{each.observed:.3f}"]
                    for each in evaluation.calibration
                ],
            ),
            "### Slices (AUC)",
            *_slices(evaluation.auc),
            "## Checks before registration",
            *_list(_parity(context.parity[candidate.name])),
            "## Where it comes from",
            *_list(_origin(context, context.code_version)),
        ]
    )


def _summary(context: Training, trained: Trained) -> list[str]:
    negative, positive = context.recipe.classes
    service = context.service
    return [
        f"Says `{positive}` where the probability is {trained.threshold:.4f} or more, else",
        f"`{negative}`. LightGBM, {trained.model.rounds} trees on {len(service.columns)} features",
        f"of the service `{service.name}`, version {service.version}.",
        *_calibrated(context),
    ]


def _calibrated(context: Training) -> list[str]:
    kind = context.recipe.calibrator
    return [] if kind is None else [f"Its probabilities are calibrated ({kind}) on tuning rows."]


def _data(context: Training, candidate: Candidate) -> Iterable[str]:
    labels = context.labels
    uses = {"trained on": context.training_rows(candidate)}
    if candidate.tune:
        uses["tuned on"] = context.period_rows(candidate.tune)
    uses["tested on"] = context.period_rows(candidate.test)
    periods = {"trained on": candidate.train, "tuned on": candidate.tune}
    for use, rows in uses.items():
        period = periods.get(use, candidate.test)
        yield (
            f"{use} {len(rows):,} decisions, {period}:"
            f" {labels[rows].mean():.1%} {context.recipe.classes[1]}"
        )


def _metrics(context: Training, candidate: Candidate) -> list[str]:
    champion = context.recipe.champion
    shown = {candidate.name: context.evaluations[candidate.name]}
    if candidate is champion:
        shown |= context.baselines
    else:
        name = f"{champion.name} on {candidate.name}'s test"
        shown[name] = context.evaluations[name]
    return _table(
        ["model", "AUC", "log loss", "Brier"],
        [[name, *_figures(evaluation)] for name, evaluation in shown.items()],
    )


def _figures(evaluation: Evaluation) -> list[str]:
    return [_interval(metric) for metric in evaluation.metrics.values()]


def _interval(metric: Metric) -> str:
    return f"{metric.value:.4f} ({metric.low:.4f} to {metric.high:.4f})"


def _slices(auc: Metric) -> list[str]:
    largest = sorted(auc.slices.items(), key=lambda item: -(item[1].rows or 0))[:SLICES_SHOWN]
    return _table(
        ["slice", "rows", "AUC"],
        [[name, f"{metric.rows:,}", _interval(metric)] for name, metric in largest],
    )


def _parity(report: ParityReport) -> Iterable[str]:
    for name, check in report.shipped.items():
        yield (
            f"ONNX against LightGBM, {name}: {check.rows:,} rows, {check.label_flips} label flips,"
            f" |Δ| ≤ {check.delta_max:.2g}"
        )
    worst = max(check.delta_max for check in report.unrounded.values())
    yield f"against the booster before rounding to float32: |Δ| ≤ {worst:.2g}"
    sizes = ", ".join(map(str, report.batch_sizes))
    yield f"batches of {sizes}: {report.batch_bits_differ} answers with other bits"


def _origin(context: Training, code: CodeVersion) -> Iterable[str]:
    yield f"run {context.run_id}"
    yield f"code {code.commit}" + (f", changed: {code.dirty_digest}" if code.dirty_digest else "")
    yield f"environment {context.environment}"
    yield f"definitions {context.definitions.digest}"
    for name, digest in sorted(context.inputs.items()):
        yield f"{name} {digest}"


def _list(lines: Iterable[str]) -> list[str]:
    return ["", *(f"- {line}" for line in lines), ""]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["", *(f"| {' | '.join(line)} |" for line in lines), ""]
